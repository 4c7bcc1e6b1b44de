"""Batches of a running server, whose model answers: through SIGKILL, cancelled, beside others."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion

from launcher.serve.db.database import Database
from launcher.serve.http import access
from serve.batches.test_batches import HELLO, content, ended, made, request, retrieved
from serve.chat.test_chat import FINAL, add_models
from serve.webhooks.receiver import Receiver, receiving
from support.served import Served, served, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PROJECTS = ("red", "green", "blue")


def requests(count: int, tokens: int, model: str = "tiny") -> list[dict[str, Any]]:
    body = {"model": model, "messages": HELLO, "max_tokens": tokens, "logit_bias": {"2": -100}}
    return [request(f"r{number}", body=body) for number in range(count)]


def client_of(server: Served, key: str | None = None) -> httpx2.Client:
    headers = {"Authorization": f"Bearer {key or server.key}"}
    return httpx2.Client(base_url=server.url, headers=headers, timeout=120)


def done(client: httpx2.Client, batch: str) -> int:
    return int(retrieved(client, batch)["request_counts"]["completed"])


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with receiving() as found:
        yield found


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, receiver: Receiver) -> Path:
    found = tmp_path_factory.mktemp("batches") / "home"
    found.mkdir()
    settings = {
        "batches": {"patience_s": 1},
        "projects": {"blue": {"questions": 1}},
        "webhooks": {"allow": [receiver.url]},
    }
    (found / "serve.yaml").write_text(json.dumps(settings))
    return found


@pytest.fixture(scope="module")
def after_a_kill(home: Path) -> Iterator[tuple[Served, str, list[str]]]:
    """A server, a batch that another one was at when it was killed, and what that had answered."""
    with served(home) as first:
        with client_of(first) as client:
            batch = made(client, requests(24, 60))
        wait_until(lambda: len(answers(home, batch)) >= 4, "answers", 120)
        first.kill()
    kept = answers(home, batch)
    with served(home) as found:
        yield found, batch, kept


def answers(home: Path, batch: str) -> list[str]:
    """Ids of what the servers of `home` have answered of a batch that has not ended."""
    files = (home / "batches" / batch).glob("answers-*")
    lines = [line for file in files for line in file.read_text().splitlines(True)]
    return [json.loads(line[line.index("{") :])["id"] for line in lines if line.endswith("}\n")]


@pytest.fixture(scope="module")
def clients(after_a_kill: tuple[Served, str, list[str]], home: Path) -> Iterator[dict[str, Any]]:
    """One for each project."""
    database = Database(f"sqlite:///{home / 'serve.db'}")
    keys = {name: access.create_key(database, name, name) for name in PROJECTS}
    add_models(database, "red")  # whose runs are not there
    database.engine.dispose()
    found = {name: client_of(after_a_kill[0], key) for name, key in keys.items()}
    yield found
    for client in found.values():
        client.close()


def test_after_a_kill_nothing_is_lost_or_doubled(
    after_a_kill: tuple[Served, str, list[str]],
) -> None:
    server, batch, kept = after_a_kill
    with client_of(server) as client:
        found = ended(client, batch, 120)
        assert found["status"] == "completed"
        assert found["request_counts"] == {"total": 24, "completed": 24, "failed": 0}
        told = content(client, found["output_file_id"])
    assert [one["custom_id"] for one in told] == [f"r{number}" for number in range(24)]
    assert 4 <= len(kept) < 24
    assert set(kept) < {one["id"] for one in told}
    for one in told:
        ChatCompletion.model_validate(one["response"]["body"], strict=True)
    usage = [one["response"]["body"]["usage"]["total_tokens"] for one in told]
    assert (found["usage"]["total_tokens"], found["model"]) == (sum(usage), "tiny")
    assert found["error_file_id"] is None


def test_others_are_answered_beside_a_batch_and_it_can_be_cancelled(
    clients: dict[str, Any], receiver: Receiver
) -> None:
    red, green = clients["red"], clients["green"]
    hook = {"name": "mine", "url": receiver.url, "event_types": ["batch.cancelled"]}
    secret = red.post("/v1/webhook_endpoints", json=hook).json()["signing_secret"]
    large = made(red, requests(400, 60))
    wait_until(lambda: done(red, large) >= 1, "an answer", 120)
    small = made(green, requests(5, 5))
    asked = {"model": "tiny", "messages": HELLO, "max_tokens": 5}
    assert red.post("/v1/chat/completions", json=asked).status_code == 200
    assert ended(green, small, 120)["request_counts"]["completed"] == 5
    cancelled = red.post(f"/v1/batches/{large}/cancel").json()
    assert (cancelled["status"], cancelled["output_file_id"]) == ("cancelling", None)
    found = ended(red, large)
    assert (found["status"], found["completed_at"]) == ("cancelled", None)
    assert found["cancelled_at"] >= found["cancelling_at"]
    output = content(red, found["output_file_id"])
    errors = content(red, found["error_file_id"])
    names = [one["custom_id"] for one in (*output, *errors)]
    assert sorted(names) == sorted(f"r{number}" for number in range(400))
    assert len(output) == found["request_counts"]["completed"] < 400
    assert {one["error"]["code"] for one in errors} == {"batch_cancelled"}
    assert red.post(f"/v1/batches/{large}/cancel").json()["status"] == "cancelled"
    refused = green.post(f"/v1/batches/{small}/cancel")
    assert (refused.status_code, "completed" in refused.text) == (400, True)
    wait_until(lambda: receiver.requests, "the event")
    event = receiver.requests[0]
    told = OpenAI(api_key="x").webhooks.unwrap(event.body, event.headers, secret=secret)
    assert (told.type, told.data.id) == ("batch.cancelled", large)


def test_what_waits_is_asked_again_and_a_model_that_stays_away_is_an_error(
    clients: dict[str, Any],
) -> None:
    blue = clients["blue"]
    waiting = made(blue, requests(6, 5))
    wait_until(lambda: retrieved(blue, waiting)["status"] == "in_progress", "its begin")
    asked = {"model": "tiny", "messages": HELLO, "max_tokens": 5}
    assert blue.post("/v1/chat/completions", json=asked).status_code == 200
    failing = made(clients["red"], requests(3, 5, FINAL))
    assert ended(blue, waiting, 120)["request_counts"]["completed"] == 6
    found = ended(clients["red"], failing, 120)
    assert found["request_counts"] == {"total": 3, "completed": 0, "failed": 3}
    told = content(clients["red"], found["error_file_id"])
    assert {one["response"]["status_code"] for one in told} == {503}
    assert {one["response"]["body"]["error"]["code"] for one in told} == {"model_unavailable"}
