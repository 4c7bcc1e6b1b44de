"""Graders that clients try: wrong ones are refused by name, hostile ones cost the server little."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from launcher.core import processes
from launcher.serve.app import create_app
from launcher.serve.http import access
from launcher.serve.service import Service
from support.endpoint import serve
from support.ranks import environment

PLACE = "/v1/fine_tuning/alpha/graders"
WORD = {"type": "string_check", "name": "word", "input": "{{ sample.output_text }}"}
WORD |= {"reference": "{{ item.answer }}", "operation": "eq"}
SETTINGS = """
graders: {timeout_s: 2, request_s: 4, memory_mb: 128, sandbox: SANDBOX}
judges:
  ours: {url: "URL", retries: 1, timeout_s: 1}
"""


def python(source: str) -> dict[str, Any]:
    return {"type": "python", "name": "code", "source": source}


def judged(model: str = "ours", **changes: Any) -> dict[str, Any]:
    question = {"role": "user", "content": "{{ sample.output_text }}"}
    form = {"type": "score_model", "name": "judged", "model": model, "input": [question]}
    return {**form, **changes}


Opened = Callable[..., TestClient]
Changes = Iterable[tuple[str, str]]


@pytest.fixture
def opened(empty_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Opened]:
    """Apps with other settings, asked with a key of theirs."""
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    left = []

    def of(
        url: str = "http://127.0.0.1:9/v1", sandbox: str = "auto", changes: Changes = ()
    ) -> TestClient:
        home = tmp_path / f"home{len(left)}"
        shutil.copytree(empty_home, home)
        text = SETTINGS.replace("URL", url).replace("SANDBOX", sandbox)
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        (home / "serve.yaml").write_text(text)
        service = Service.open(home)
        key = access.create_key(service.database, "test", "ours")
        headers = {"Authorization": f"Bearer {key}"}
        made = TestClient(create_app(service), headers=headers)
        left.append((service, made))
        return made.__enter__()

    yield of
    for service, made in left:
        made.__exit__(None, None, None)
        service.database.engine.dispose()


def run(client: TestClient, grader: Any, sample: str = "7", **item: Any) -> dict[str, Any]:
    asked = {"grader": grader, "model_sample": sample, "item": item}
    answer = client.post(f"{PLACE}/run", json=asked)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def errors(found: dict[str, Any]) -> dict[str, Any]:
    return {name: said for name, said in found["metadata"]["errors"].items() if said}


@pytest.mark.slow
def test_what_graders_say(opened: Opened) -> None:
    client = opened()
    found = run(client, WORD, answer="7")
    assert (found["reward"], found["sub_rewards"], errors(found)) == (1.0, {}, {})
    assert found["metadata"]["token_usage"] is found["metadata"]["sampled_model_name"] is None
    assert errors(run(client, WORD)) == {"invalid_variable_error": True}
    parts = {"a": {**WORD, "input": "{{ sample.output_json.x }}"}, "b": WORD}
    multi = {"type": "multi", "name": "m", "graders": parts, "calculate_output": "1 / (a - b)"}
    found = run(client, multi, sample="no JSON", answer="y")
    assert errors(found) == {"formula_parse_error": True, "sample_parse_error": True}
    assert (found["reward"], found["sub_rewards"]) == (0.0, {"a": 0.0, "b": 0.0})
    text = {**WORD, "type": "text_similarity", "evaluation_metric": "fuzzy_match"}
    del text["operation"]
    assert run(client, text, sample="same", answer="same")["reward"] == 1.0


@pytest.mark.slow
def test_hostile_code_is_stopped_and_the_next_request_is_answered(opened: Opened) -> None:
    client = opened()
    kinds = "python_grader_runtime_error", "python_grader_server_error"
    for source in (
        "while True: pass",
        "import os\ndef grade(s, i):\n    os._exit(0)",
        "import os, signal\ndef grade(s, i):\n    os.kill(os.getppid(), signal.SIGKILL)",
        "def grade(s, i):\n    return 'x' * (1 << 40)",
        "def grade(s, i):\n    return {}",
        "import socket\ndef grade(s, i):\n    socket.create_connection(('127.0.0.1', 9), 1)",
    ):
        found = run(client, python(source))
        said = errors(found)
        assert found["reward"] == 0.0, source
        assert any(kind in said for kind in kinds), (source, said)
    assert run(client, python("def grade(s, i):\n    return 0.5"))["reward"] == 0.5


@pytest.mark.slow
def test_what_takes_too_long_ends_and_says_so(opened: Opened) -> None:
    client = opened()
    words = " ".join(map(str, range(60_000)))  # each is compared with each
    form = {**WORD, "type": "text_similarity", "evaluation_metric": "rouge_l"}
    del form["operation"]
    found = run(client, form, sample=words, answer=" ".join(reversed(words.split())))
    assert errors(found) == {"unresponsive_reward_error": True, "other_error": True}
    assert found["reward"] == 0.0
    assert run(client, WORD, answer="7")["reward"] == 1.0


@pytest.mark.slow
def test_wrong_graders_are_refused_by_name(opened: Opened) -> None:
    client = opened()
    deep: Any = "x"
    for _ in range(40):
        deep = [deep]
    parts = {"a": WORD, "b": judged("gpt-4o")}
    multi = {"type": "multi", "name": "m", "graders": parts, "calculate_output": "a"}
    for form, param in (
        ({}, "grader.type"),
        ({"type": "exact", "name": "x"}, "grader.type"),
        ({"type": "reward_model", "name": "x", "model": "/"}, "grader.type"),
        ({"type": "json_schema", "name": "x", "schema": {"$ref": "http://x"}}, "grader.type"),
        ({"type": "label_model", "name": "x"}, "grader.type"),
        ({**WORD, "operation": "is"}, "grader.operation"),
        ({**WORD, "reference": "{{ items.answer }}"}, "grader.reference"),
        ({**WORD, "url": "http://169.254.169.254/"}, "grader.url"),
        ({**WORD, "name": deep}, "grader"),
        (judged("gpt-4o"), "grader.model"),
        (judged(url="http://169.254.169.254/"), "grader.url"),
        (multi, "grader.graders.b.model"),
        (python("def grade("), "grader.source"),
        (python("(" * 90_000), "grader.source"),
        (python("def other(s, i): return 1"), "grader.source"),
        ({**python("def grade(s, i): return 1"), "image_tag": "x"}, "grader.image_tag"),
    ):
        answer = client.post(f"{PLACE}/validate", json={"grader": form})
        error = answer.json()["error"]
        assert (answer.status_code, error["param"]) == (400, param), (form, answer.text)
    assert client.post(f"{PLACE}/validate", json={"grader": WORD}).json() == {"grader": WORD}
    many = client.post(f"{PLACE}/run", json={"grader": WORD, "model_sample": "x", "items": []})
    assert many.json()["error"]["code"] == "unknown_parameter"


@pytest.mark.slow
def test_a_judge_is_asked_where_the_site_says_and_nothing_of_that_is_told(opened: Opened) -> None:
    with serve(lambda *_: (500, {})) as broken:
        found = run(opened(broken.url), judged())
    said = errors(found)
    assert said == {
        "model_grader_server_error": True,
        "model_grader_server_error_details": "ours does not answer: HTTP 500",
    }
    assert len(broken.requests) == 2
    with serve(lambda *_: (401, {})) as closed:
        said = errors(run(opened(closed.url), judged(), sample="another"))
    assert said["model_grader_server_error_details"].endswith("HTTP 401")
    with serve(lambda *_: "I say nothing.") as silent:
        said = errors(run(opened(silent.url), judged(), sample="a third"))
    assert said == {"model_grader_parse_error": True}
    said = errors(run(opened("http://127.0.0.1:9/v1"), judged(), sample="a fourth"))
    assert said["model_grader_server_error_details"] == (
        "ours does not answer: ConnectionRefusedError"
    )


@pytest.mark.slow
def test_the_site_answers_for_its_processes_and_keys_and_no_client_does(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def validated(form: dict[str, Any]) -> int:
        return client.post(f"{PLACE}/validate", json={"grader": form}).status_code

    before = set(processes.children(os.getpid()))
    client = opened(changes=[("timeout_s: 1}", "timeout_s: 1, key_variable: ODD_KEY}")])
    assert validated(judged()) == 200
    (worker,) = set(processes.children(os.getpid())) - before
    os.kill(worker, signal.SIGKILL)  # as for want of memory
    while processes.stat(worker) and processes.stat(worker)[0] != "Z":  # type: ignore[index]
        time.sleep(0.01)
    monkeypatch.setenv("ODD_KEY", "sk-\u00e9")
    assert validated(WORD) == 200
    answer = client.post(f"{PLACE}/validate", json={"grader": judged()})
    assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
    assert "ODD" not in answer.text
    assert "judges: 'ours' cannot be asked: its key is no key" in caplog.text
    assert "\u00e9" not in caplog.text
    assert validated(WORD) == 200


@pytest.mark.slow
def test_slow_graders_of_a_project_keep_no_other_from_having_its_own_checked(
    opened: Opened,
) -> None:
    checked = threading.Event()

    def slow(*_: Any) -> str:
        checked.wait(50)
        return "Score: 1"

    changes = [("request_s: 4", "request_s: 60"), ("timeout_s: 1}", "timeout_s: 60}")]
    with serve(slow) as served, ThreadPoolExecutor(4) as threads:
        client = opened(served.url, changes=changes)
        asked = [{"grader": judged(), "model_sample": str(number)} for number in range(3)]
        mine = [threads.submit(client.post, f"{PLACE}/run", json=one) for one in asked]
        while not served.requests:
            time.sleep(0.01)
        key = access.create_key(client.app.state.service.database, "test", "theirs")  # type: ignore[attr-defined]
        answer = client.post(
            f"{PLACE}/validate", json={"grader": WORD}, headers={"Authorization": f"Bearer {key}"}
        )
        assert answer.status_code == 200
        assert not any(one.done() for one in mine)
        checked.set()
        assert [one.result().json()["reward"] for one in mine] == [1.0] * 3


#: A server that is about to be killed while a judge is asked, again and again.
_OWNER = f"""
import asyncio
from launcher.serve.grading.workers import Grading
from launcher.serve.site import Site, SiteJudge
judges = {{"ours": SiteJudge(url="http://127.0.0.1:9/v1", retries=20)}}
grading = Grading(Site(judges=judges))
asyncio.run(grading.require_sound("anna", {judged()!r}, "grader"))
print("ready", flush=True)
asyncio.run(grading.run("anna", {judged()!r}, {{}}, "x"))
"""


@pytest.mark.slow
def test_processes_end_with_a_killed_server_and_show_nobody_its_judges(tmp_path: Path) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", _OWNER],
        stdout=subprocess.PIPE,
        env={**environment(), "LAUNCHER_CACHE": str(tmp_path)},
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"ready\n"
    (worker,) = processes.descendants(owner.pid)
    since = time.time()
    assert b"127.0.0.1" not in Path(f"/proc/{worker}/cmdline").read_bytes()
    time.sleep(0.5)  # it asks, and waits for a new try
    owner.kill()
    owner.wait()
    owner.stdout.close()
    end = time.monotonic() + 20
    while processes.alive(worker, since) and time.monotonic() < end:
        time.sleep(0.05)
    assert not processes.alive(worker, since)


@pytest.mark.slow
def test_many_that_wait_are_refused_and_no_other_route_waits(opened: Opened) -> None:
    client = opened()
    asked = {"grader": python("while True: pass"), "model_sample": "x"}
    with ThreadPoolExecutor(8) as threads:
        slow = [threads.submit(client.post, f"{PLACE}/run", json=asked) for _ in range(4)]
        assert client.get("/v1/models").status_code == 200
        assert not all(one.done() for one in slow)
        assert {one.result().status_code for one in slow} == {200}
