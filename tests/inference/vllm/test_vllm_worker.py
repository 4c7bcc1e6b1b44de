"""The command of a server, and what its models have in common."""

from __future__ import annotations

import json
import threading
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from launcher.config.schema import TinyModelConfig
from launcher.core.errors import ConfigError
from launcher.core.rundir import RunDir
from launcher.data.tokenizer import load_tokenizer
from launcher.evals.decoding import Decoding
from launcher.inference.steering import Steering
from launcher.inference.vllm.opening import Origin, adapter_folder, key_of, name_of
from launcher.inference.vllm.relay import Relay
from launcher.inference.vllm.server import WatchedServer
from launcher.inference.vllm.worker import Relaying, Served, _order, words_of
from launcher.serve.site import VllmSettings
from launcher.vllm.connection import RefusedError
from support.slurm import wait_for


def after(words: list[str], name: str) -> str:
    return words[words.index(name) + 1]


@pytest.mark.parametrize(("rank", "room"), [(4, "8"), (64, "64"), (65, "128")])
def test_a_server_of_a_base_has_room_for_its_adapters(rank: int, room: str) -> None:
    settings = asdict(VllmSettings(python="some/python", lora_rank=rank, adapters=3, memory=0.45))
    words = words_of(settings, Path("base"), Path("tokens"), "bf16", is_shared=True)
    assert words[:3] == ["some/python", "-m", "vllm.entrypoints.openai.api_server"]
    assert "--enable-lora" in words
    found = {name: after(words, f"--{name}") for name in ("max-lora-rank", "max-loras", "dtype")}
    assert found == {"max-lora-rank": room, "max-loras": "3", "dtype": "bfloat16"}
    assert (after(words, "--model"), after(words, "--tokenizer")) == ("base", "tokens")
    assert after(words, "--gpu-memory-utilization") == "0.45"
    assert after(words, "--middleware") == "launcher_door.Door"
    config = json.loads(after(words, "--structured-outputs-config"))
    assert config == {"backend": "guidance"}


def test_a_model_of_its_own_has_a_server_without_adapters() -> None:
    settings = asdict(VllmSettings())
    words = words_of(settings, Path("model"), Path("tokens"), "fp32", is_shared=False)
    assert after(words, "--dtype") == "float32"
    assert not [word for word in words if "lora" in word]
    assert "--gpu-memory-utilization" not in words


class Interleaved(threading.Condition):
    """Lets another thread go on where the first to come lets go of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = threading.get_ident()
        self.may_open, self.is_open = threading.Event(), threading.Event()
        self.is_armed = False

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if self.is_armed and threading.get_ident() == self.first and not self.may_open.is_set():
            self.may_open.set()
            assert self.is_open.wait(30)


def test_a_request_that_comes_while_its_model_opens_is_answered_once() -> None:
    served: Any = Served(None, None)  # type: ignore[arg-type]
    changed = Interleaved()

    def opened(raw: dict[str, Any]) -> Served:
        assert changed.may_open.wait(30)
        return served

    relaying = Relaying(None, opened, 8, 1, print)  # type: ignore[arg-type]
    relaying._changed = changed
    open_one = relaying._open_one

    def opening(*arguments: Any) -> None:
        open_one(*arguments)
        changed.is_open.set()

    relaying._open_one = opening  # type: ignore[method-assign]
    relaying._start(relaying._open_all)
    relaying._take_in({"id": "a", "model": {"run": "r"}})
    changed.is_armed = True
    relaying._take_in({"id": "b", "model": {"run": "r"}})
    found = [relaying._waiting.next() for _ in range(3)]
    assert [one and one["id"] for one in found] == ["a", "b", None]


def test_what_ends_a_thread_of_requests_ends_the_process() -> None:
    relaying = Relaying(None, lambda raw: None, 8, 1, print)  # type: ignore[arg-type,return-value]
    relaying.check()
    relaying.start(["no JSON"])
    wait_for(lambda: relaying._broken is not None, "its end", 30)
    with pytest.raises(ValueError, match="Expecting value"):
        relaying.check()


@pytest.mark.parametrize(("given", "found"), [({}, "4"), ({"VLLM_CPU_KVCACHE_SPACE": "1"}, "1")])
def test_a_server_on_cpus_takes_no_share_of_all_memory(given: dict[str, str], found: str) -> None:
    settings = asdict(VllmSettings(environment=given))
    order = _order(settings, Path("folder"), ["vllm"])
    assert order.environment["VLLM_CPU_KVCACHE_SPACE"] == found


def test_an_adapter_that_lies_in_a_folder_is_not_made_again(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "ftjob-1")
    run.export.mkdir(parents=True)
    (run.export / "adapter_config.json").write_text("{}")
    last, step = (Origin.of({"run": str(run.path), "step": step}) for step in (None, 5))
    scratch = tmp_path / "scratch"
    assert adapter_folder(last, scratch) == run.export
    assert not scratch.exists()
    with pytest.raises(ConfigError):
        adapter_folder(step, scratch)
    assert [name_of(one) for one in (last, step)] == ["ftjob-1-last", "ftjob-1-5"]


def test_models_are_opened_in_turns_of_projects() -> None:
    opened: list[str] = []
    may_go = threading.Event()

    def open_model(raw: dict[str, Any]) -> Served:
        opened.append(raw["run"])
        assert may_go.wait(30)
        return Served(None, None)  # type: ignore[arg-type]

    relaying = Relaying(None, open_model, 8, 1, print)  # type: ignore[arg-type]
    relaying._start(relaying._open_all)
    for project, run in [("a", "1"), ("a", "2"), ("a", "3"), ("b", "4")]:
        relaying._take_in({"id": run, "project": project, "model": {"run": run}})
        wait_for(lambda: bool(opened), "the first", 30)
    may_go.set()
    wait_for(lambda: len(opened) == 4, "all", 30)
    assert opened == ["1", "2", "4", "3"]


def test_nothing_is_kept_of_a_model_that_is_no_more(tmp_path: Path) -> None:
    made, export = tmp_path / "server" / "adapters" / "r-5", tmp_path / "runs" / "r" / "export"
    for folder in (made, export):
        folder.mkdir(parents=True)
    order = _order(asdict(VllmSettings()), tmp_path / "server", ["vllm"])
    server = WatchedServer(tmp_path / "server", order, 10)
    folders = {"r-5": made, "r-last": export}

    def open_model(raw: dict[str, Any]) -> Served:
        return Served(None, None, (raw["run"], folders[raw["run"]]))  # type: ignore[arg-type]

    relaying = Relaying(server, open_model, 8, 1, print)
    relaying._start(relaying._open_all)
    for name in folders:
        request = {"id": name, "model": {"run": name}}
        relaying._kept[name] = request
        relaying._take_in(request)
        key = key_of(request["model"])
        wait_for(lambda key=key: relaying._models[key].served is not None, "a model", 30)
        relaying._forget({"run": name})
        assert key in relaying._models, "a request waits for it"
        del relaying._kept[name]
        relaying._forget({"run": name})
        assert key not in relaying._models
    wait_for(lambda: not made.exists(), "the end of its folder", 30)
    assert export.exists()


def relay(project: str) -> Relay:
    ask: Any = SimpleNamespace(
        number=0,
        tokens=[1],
        decoding=Decoding(max_new_tokens=1),
        steering=Steering(),
        stop=[],
        is_gone=lambda: False,
    )
    speaker: Any = SimpleNamespace(tokenizer=load_tokenizer(TinyModelConfig()), stop_tokens=[2])
    return Relay(ask, speaker, None, None, project)  # type: ignore[arg-type]


def test_projects_share_no_keys_and_values() -> None:
    salts = [relay(name)._body().get("cache_salt") for name in ("a", "a", "b", "a/=", "")]
    assert salts[0] == salts[1]
    assert len({*salts}) == 4
    assert all(one is None or one.isalnum() for one in salts)


@pytest.mark.parametrize(
    ("said", "is_of_grammar"),
    [
        ("Grammar error: lexer state limit", True),
        ("Invalid grammar specification: 'x'", True),
        ("This model's maximum context length is 64 tokens", False),
    ],
)
def test_a_form_is_at_fault_only_where_vllm_says_so(said: str, is_of_grammar: bool) -> None:
    own = relay("a")
    ended: list[str] = []
    own._ask.end = lambda reason, count: ended.append(reason)  # type: ignore[method-assign]
    own._constraint = object()  # type: ignore[assignment]

    def refuse(*_: Any) -> None:
        raise RefusedError("/v1/completions", 400, said)

    own._tell = refuse  # type: ignore[method-assign]
    own._server = SimpleNamespace(reach=lambda is_gone: ("one", None))  # type: ignore[assignment]
    if is_of_grammar:
        own.answer()
        assert ended == ["failed"]
    else:
        with pytest.raises(RefusedError):
            own.answer()
