"""Answers by servers, asked as clients do, beside those of the same models in processes of our own:
a small stand-in everywhere, and vLLM where it is.

LAUNCHER_TEST_VLLM names a Python that has vLLM.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import yaml

from launcher.core import processes
from launcher.core.files import read_json
from launcher.vllm import places
from launcher.vllm.connection import ServerConnection
from support import leaks
from support.chats import write_pirate_chats
from support.served import Served, start, wait_until

VLLM = os.environ.get("LAUNCHER_TEST_VLLM")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SUPPORT = Path(__file__).parents[2] / "support"
STAND_IN = SUPPORT / "vllm_stand_in" / "python"
#: One that writes calls of tools as JSON, and one that does not.
CALLS, OTHERS = (SUPPORT / "templates" / f"{name}.jinja" for name in ("qwen2_5", "qwen3_5"))
TRAINS = ["optim.lr=2e-2", "data.max_length=128", "launch.processes=1", "data.workers=1"]
OFFERS = {
    "tiny": {"overrides": ["model=tiny", "peft=lora", "peft.rank=4", *TRAINS]},
    "whole": {"overrides": ["model=tiny", "peft=none", *TRAINS]},
    "caller": {"overrides": ["model=tiny", f"model.chat_template={CALLS}"]},
    "speaker": {"overrides": ["model=tiny", f"model.chat_template={OTHERS}"]},
}
#: They live as long as the service: that they end with it is a test of its own.
UNMARKED = {leaks.MARKER: ""}
SERVERS: dict[str, dict[str, Any]] = {
    "stand-in": {
        "python": str(STAND_IN),
        "environment": {"LAUNCHER_TEST_PYTHON": sys.executable, **UNMARKED},
    },
    "vllm": {
        "python": VLLM,
        "options": ["--enforce-eager"],
        "environment": {"VLLM_CPU_KVCACHE_SPACE": "1", **UNMARKED},
    },
}
real = pytest.mark.skipif(not VLLM, reason="LAUNCHER_TEST_VLLM names no Python with vLLM")
HELLO = [{"role": "user", "content": "Anna has 3 apples and gets 4 more. How many?"}]
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}
FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
TOOL = {"type": "function", "function": {"name": "count", "parameters": SCHEMA, "strict": True}}
#: What is asked of each model, whose answers are compared.
ASKED: dict[str, dict[str, Any]] = {
    "greedy": {},
    "penalties": {"presence_penalty": 0.5, "frequency_penalty": 1.5},
    "bias": {"logit_bias": {"80": 6, "81": -100}},
    "stop": {"stop": ["e", "Arr, m"]},
    "likelihoods": {"logprobs": True, "top_logprobs": 3},
}


@dataclass
class There:
    """A service whose models have answered in processes of its own, and now answer by vLLM."""

    served: Served
    models: dict[str, str]
    """What they are called in tests -> by clients."""
    local: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    @property
    def client(self) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=self.served.base_url, api_key=self.served.key, timeout=600, max_retries=0
        )

    def ask(self, model: str, **changed: Any) -> Any:
        body: dict[str, Any] = {"messages": HELLO, "max_tokens": 40, "temperature": 0, **changed}
        return self.client.chat.completions.create(model=self.models[model], **body)

    def servers(self) -> list[dict[str, Any]]:
        """What is told of the servers of vLLM by who keeps them."""
        found = (read_json(path) for path in self.served.home.glob(".vllm-servers/*/server-0.json"))
        return [one for one in found if one and one["state"] == "ready"]


def settle(home: Path, **chat: Any) -> None:
    (home / "serve.yaml").write_text(
        yaml.safe_dump({"models": OFFERS, "chat": {"gpus": False, "idle_s": 3600, **chat}})
    )


def tuned(there: Served, file: str, model: str) -> tuple[str, str]:
    """A model that a job makes, and its first checkpoint."""
    with there.client() as client:
        job = client.post(
            "/fine_tuning/jobs",
            json={"training_file": file, "model": model, "hyperparameters": {"n_epochs": 3}},
        ).json()
        path = f"/fine_tuning/jobs/{job['id']}"
        wait_until(
            lambda: client.get(path).json()["status"] in ("succeeded", "failed"), "a job", 300
        )
        job = client.get(path).json()
        assert job["status"] == "succeeded", job
        points = client.get(f"{path}/checkpoints").json()["data"]
        return job["fine_tuned_model"], points[-1]["fine_tuned_model_checkpoint"]


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> There:
    """A service that has ended, and what its models have answered in processes."""
    home = tmp_path_factory.mktemp("local") / "home"
    home.mkdir()
    settle(home, models=4)
    served = start(home)
    data = write_pirate_chats(home.parent / "pirates.jsonl")
    with served.client() as client:
        sent = {"file": ("pirates.jsonl", data.read_bytes())}
        file = client.post("/files", files=sent, data={"purpose": "fine-tune"}).json()["id"]
    models = {"base": "tiny", "caller": "caller", "speaker": "speaker"}
    models["tuned"], models["point"] = tuned(served, file, "tiny")
    models["whole"], _ = tuned(served, file, "whole")
    found = There(served, models)
    for model in ("base", "tuned", "point", "whole"):
        for name, changed in ASKED.items():
            found.local[model, name] = found.ask(model, **changed).model_dump()
    assert served.stop() == 0
    return found


@pytest.fixture(scope="module", params=["stand-in", pytest.param("vllm", marks=real)])
def there(
    before: There, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[There]:
    home = tmp_path_factory.mktemp("served") / "home"
    shutil.copytree(before.served.home, home)
    settle(home, models=2, answers="vllm", vllm=SERVERS[request.param])
    found = replace(before, served=start(home))
    try:
        found.ask("base", max_tokens=1)
        yield found
    finally:
        if found.served.process.poll() is None:
            found.served.stop()


def said(answer: dict[str, Any]) -> dict[str, Any]:
    """What must be the same whatever answers."""
    choice = {**answer["choices"][0], "logprobs": None}
    return {"choice": choice, "model": answer["model"], "usage": answer["usage"]}


@pytest.mark.parametrize("model", ["base", "tuned", "point"])
@pytest.mark.parametrize("name", ASKED)
def test_answers_are_those_of_the_model_in_a_process(there: There, model: str, name: str) -> None:
    expected = there.local[model, name]
    found = there.ask(model, **ASKED[name]).model_dump()
    assert said(found) == said(expected)
    assert found["id"].startswith("chatcmpl-")
    if name == "likelihoods":
        ours, theirs = (one["choices"][0]["logprobs"]["content"] for one in (found, expected))
        assert [one["token"] for one in ours] == [one["token"] for one in theirs]
        for own, other in zip(ours, theirs, strict=True):
            assert own["bytes"] == other["bytes"]
            assert own["logprob"] == pytest.approx(other["logprob"], abs=1e-3)
            likely = [one["logprob"] for one in other["top_logprobs"]]
            assert [one["logprob"] for one in own["top_logprobs"]] == pytest.approx(
                likely, abs=1e-3
            )


def test_models_differ_and_share_one_server(there: There) -> None:
    texts = {
        there.local[model, "greedy"]["choices"][0]["message"]["content"]
        for model in ("base", "tuned", "point")
    }
    assert len(texts) == 3
    for model in ("base", "tuned", "point", "caller"):
        there.ask(model, max_tokens=1)
    assert len(there.servers()) == 1


def test_a_stream_says_the_same_with_usage_and_choices_are_seeded(there: There) -> None:
    options = {"stream": True, "stream_options": {"include_usage": True}}
    chunks = list(there.ask("tuned", **options))
    expected = there.local["tuned", "greedy"]
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == expected["choices"][0]["message"]["content"]
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.model_dump() == expected["usage"]
    assert {one.model for one in chunks} == {there.models["tuned"]}
    drawn = {"temperature": 1.2, "n": 3, "seed": 11, "max_tokens": 12}
    one, other = (there.ask("base", **drawn) for _ in range(2))
    texts = [choice.message.content for choice in one.choices]
    assert texts == [choice.message.content for choice in other.choices]
    assert len({*texts}) == 3


def test_a_schema_is_kept_to_and_tools_are_called(there: There) -> None:
    for seed in range(3):
        drawn = {"temperature": 1, "seed": seed, "n": 2, "max_tokens": 60}
        for choice in there.ask("tuned", response_format=FORM, **drawn).choices:
            assert choice.finish_reason == "stop"
            assert 0 <= json.loads(choice.message.content)["n"] <= 9
        asked = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
        for choice in there.ask("caller", **asked, **{**drawn, "max_tokens": 90}).choices:
            assert choice.finish_reason == "tool_calls"
            (call,) = choice.message.tool_calls
            assert call.function.name == "count"
            assert 0 <= json.loads(call.function.arguments)["n"] <= 9
    answer = there.client.responses.create(
        model="caller",
        input="How many?",
        tools=[{"type": "function", **TOOL["function"]}],
        tool_choice={"type": "function", "name": "count"},
        parallel_tool_calls=False,
        max_output_tokens=90,
    )
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert 0 <= json.loads(call.arguments)["n"] <= 9


@pytest.mark.parametrize(
    ("model", "changed", "param"),
    [
        ("speaker", {"tools": [TOOL], "tool_choice": "required"}, "tool_choice"),
        ("base", {"logit_bias": {"100000": 1}}, "logit_bias"),
        ("base", {"max_tokens": 1024}, "messages"),
        (
            "tuned",
            {"response_format": {**FORM, "json_schema": {"name": "a", "schema": {"not": {}}}}},
            "response_format",
        ),
        ("base", {"extra_body": {"guided_json": {}}}, "guided_json"),
    ],
)
def test_what_cannot_be_is_refused_by_name(
    there: There, model: str, changed: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        there.ask(model, **changed)
    assert refused.value.param == param


def test_nobody_else_may_ask_and_clients_do_not_learn_who_answers(there: There) -> None:
    (server,) = there.servers()
    own = server["url"].removeprefix("unix:")
    assert Path(own).parent.stat().st_mode & 0o077 == 0
    (order,) = there.served.home.glob(".vllm-servers/*/order.json")
    assert order.stat().st_mode & 0o077 == 0
    with httpx2.Client(transport=httpx2.HTTPTransport(uds=own), base_url="http://own") as client:
        for path in ("/health", "/v1/models", "/collective_rpc"):
            assert client.get(path).status_code == 401
    with there.served.client(timeout_s=120) as client:
        body = {"model": "tiny", "messages": HELLO, "max_tokens": 3}
        answer = client.post("/chat/completions", json=body)
        models = client.get("/models")
    for one in (answer, models):
        told = f"{one.headers} {one.text}".lower()
        assert "vllm" not in told
        assert own not in told


def test_a_server_that_is_killed_loses_no_answer(there: There) -> None:
    """What has begun goes on where it was, what waits is answered, and what comes then."""
    long = {"max_tokens": 700, "logit_bias": {"2": -100}}
    whole = there.ask("tuned", **long).choices[0].message.content
    (server,) = there.servers()
    waiting: list[Any] = []
    text = ""
    stream = there.ask("tuned", **long, stream=True)
    for place, chunk in enumerate(stream):
        text += chunk.choices[0].delta.content or ""
        if place == 20:
            os.kill(server["pid"], signal.SIGKILL)
            asking = threading.Thread(target=lambda: waiting.append(there.ask("base")))
            asking.start()
    asking.join(300)
    assert text == whole
    expected = there.local["base", "greedy"]
    assert said(waiting[0].model_dump()) == said(expected)
    (other,) = there.servers()
    assert other["pid"] != server["pid"]
    assert said(there.ask("point").model_dump()) == said(there.local["point", "greedy"])


def test_a_model_with_weights_of_its_own_has_a_server_of_its_own(there: There) -> None:
    found = there.ask("whole").model_dump()
    assert said(found) == said(there.local["whole", "greedy"])
    assert len(there.servers()) == 2


def test_a_deleted_model_leaves_its_server(there: There) -> None:
    def adapters() -> set[str]:
        names: set[str] = set()
        for order in there.served.home.glob(".vllm-servers/*/order.json"):
            token = json.loads(order.read_text())["token"]
            record = json.loads((order.parent / "server-0.json").read_text())
            token = places.token_of(token, record["start"])
            listed = ServerConnection(record["url"], token, 60).get("/v1/models")
            names |= {one["id"] for one in listed["data"]}
        return names

    there.ask("point", max_tokens=1)
    before = adapters()
    there.client.models.delete(there.models["point"])
    wait_until(lambda: len(before - adapters()) == 1, "the end of an adapter", 60)
    with pytest.raises(openai.NotFoundError):
        there.ask("point")


def test_servers_end_with_a_service_that_is_killed_or_stopped(there: There) -> None:
    def is_there(pid: int) -> bool:
        return processes.alive(pid, time.time())

    for end in ("kill", "stop"):
        there.ask("base", max_tokens=1)
        servers = there.servers()
        assert servers
        family = processes.descendants(there.served.process.pid)
        for server in servers:
            fields = processes.stat(server["pid"])
            assert fields is not None
            keeper = int(fields[1])
            assert is_there(keeper)
            family += [keeper, *processes.descendants(keeper)]
        getattr(there.served, end)()
        wait_until(lambda family=family: not any(map(is_there, family)), "the end of all", 60)
        wait_until(lambda: not [*there.served.home.glob(".vllm-servers/*")], "no folder", 30)
        if end == "kill":
            there.served = start(there.served.home)
