"""Which models share a server of vLLM, and what it is told of them."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from launcher.config.compose import compose
from launcher.core import processes
from launcher.serve.chat.engines import (
    ModelSource,
    SharedBase,
    engine_of,
    is_shared,
)
from launcher.serve.chat.model_process import Failed
from launcher.serve.service import Service
from launcher.serve.site import VllmSettings

SETTINGS = VllmSettings(lora_rank=16)


@pytest.mark.parametrize(
    ("words", "run", "base"),
    [
        (["peft=lora", "peft.rank=16"], True, True),
        (["peft=lora", "peft.rank=17"], False, True),
        (["peft=lora", "peft.dora=true"], False, True),
        (["peft=lora", "peft.rslora=true"], True, True),
        (["peft=lora", "peft.modules_to_save=[embed_tokens]"], False, True),
        (["peft=lora", "model.quantization=nf4"], False, True),
        (["peft=lora", "model.add_tokens=['<a>']"], False, False),
        (["peft=none"], False, True),
    ],
)
def test_low_rank_adapters_share_the_server_of_their_base(
    words: list[str], run: bool, base: bool
) -> None:
    config = compose.compose(["model=tiny", *words])
    assert is_shared(config, SETTINGS, is_base=False) is run
    assert is_shared(config, SETTINGS, is_base=True) is base


@pytest.mark.parametrize(("about", "shared"), [({"r": 4}, True), ({"r": 32}, False)])
def test_an_adapter_that_is_trained_further_keeps_its_rank(
    tmp_path: Path, about: dict[str, int], shared: bool
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(about))
    config = compose.compose(["model=tiny", "peft=lora", "peft.rank=8"])
    config.peft.adapter = str(tmp_path)  # type: ignore[attr-defined]
    assert is_shared(config, SETTINGS, is_base=False) is shared
    assert not is_shared(config, SETTINGS, is_base=True)


def test_offers_of_one_base_have_one_seat(service: Service) -> None:
    service.site.chat.answers = "vllm"
    engine = engine_of(service)

    async def seats(*words: tuple[str, ...]) -> list[object]:
        return [await engine.seat(ModelSource(overrides=("model=tiny", *own))) for own in words]

    one, other, wide, own = asyncio.run(
        seats((), ("peft=lora", "optim.lr=1"), ("model.hidden_size=64",), ("model.add_tokens=[x]",))
    )
    assert isinstance(one, SharedBase)
    assert one == other
    assert isinstance(wide, SharedBase)
    assert wide != one
    assert isinstance(own, ModelSource)
    source = ModelSource("ftjob-1", 5)
    run = str(service.runs / "ftjob-1")
    assert engine.request(source, {"n": 1}) == {"n": 1, "model": {"run": run, "step": 5}}
    assert engine.farewell(one, source) == {"forget": {"run": run, "step": 5}}
    assert engine.farewell(source, source) is None
    with pytest.raises(Failed):
        asyncio.run(engine.seat(source))


def aged(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "python").touch()
    os.utime(folder, (1, 1))
    return folder


def test_only_folders_of_servers_are_swept_away(service: Service) -> None:
    """vLLM's environment, and what else is there, is somebody's."""
    service.site.chat.answers = "vllm"
    environment = aged(service.home / "vllm" / "bin")
    other = aged(service.home / ".vllm-servers" / "other")
    left, fresh = (service.home / ".vllm-servers" / name for name in ("left", "fresh"))
    for folder in (left, fresh):
        folder.mkdir()
        (folder / "launcher-server").touch()
    os.utime(left, (1, 1))
    engine_of(service)
    assert (environment / "python").exists()
    assert (other / "python").exists()
    assert fresh.exists()
    assert not left.exists()


def test_what_a_killed_service_has_left_goes_at_once(service: Service) -> None:
    """Unless a keeper is still about it; and nothing of one that lives, however long it takes."""
    service.site.chat.answers = "vllm"
    ended = subprocess.Popen(["true"])
    ended.wait()
    space = processes.space()
    found = {}
    for name, pid, is_wanted in (
        ("dead", ended.pid, False),
        ("kept", ended.pid, True),
        ("living", os.getpid(), False),
    ):
        folder = found[name] = service.home / ".vllm-servers" / name
        folder.mkdir(parents=True)
        owner = {"space": space, "pid": pid, "since": time.time()}
        (folder / "launcher-server").write_text(json.dumps(owner))
        if is_wanted:
            (folder / "order.json").touch()
    os.utime(found["living"], (1, 1))
    engine_of(service)
    assert {name for name, folder in found.items() if folder.exists()} == {"kept", "living"}


def test_a_folder_that_cannot_be_made_is_no_fault_of_who_asks(service: Service) -> None:
    service.site.chat.answers = "vllm"
    engine = engine_of(service)
    (service.home / ".vllm-servers").touch()
    source = ModelSource(overrides=("model=tiny",))
    with pytest.raises(Failed, match="cannot be made"):
        asyncio.run(engine.open(source, source))


def test_a_base_is_told_by_its_folder_and_by_whether_its_code_runs(service: Service) -> None:
    service.site.chat.answers = "vllm"
    (service.home / "base").mkdir()
    engine = engine_of(service)
    named, full, trusted = (
        asyncio.run(engine.seat(ModelSource(overrides=words)))
        for words in (
            ("model.name=base",),
            (f"model.name={service.home / 'base'}",),
            ("model.name=base", "model.trust_remote_code=true"),
        )
    )
    assert isinstance(named, SharedBase)
    assert named == full
    assert named != trusted
