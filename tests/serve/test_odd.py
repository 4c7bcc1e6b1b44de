"""Odd texts through every way that a value takes in the API, and back: as they were sent."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncGenerator, Iterator
from typing import Any
from urllib.parse import quote, unquote

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from launcher.serve import naming
from launcher.serve.app import create_app
from launcher.serve.chat.responses import Answer
from launcher.serve.chat.wire_chat import ChatRequest, CompletionRequest
from launcher.serve.db.tables import File, Job
from launcher.serve.http import access
from launcher.serve.jobs import admission, journal, ownership
from launcher.serve.jobs.journal import Note
from launcher.serve.jobs.ownership import Owner
from launcher.serve.jobs.workspace import Workplace
from launcher.serve.service import Service
from support.odd import EVERY, ODD

JOBS = "/v1/fine_tuning/jobs"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    found = Service.open(tmp_path_factory.mktemp("odd") / "home")
    found.site.quota.queued_jobs = None
    yield found
    found.database.engine.dispose()


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[TestClient]:
    key = access.create_key(service.database, "test", "ours")
    headers = {"Authorization": f"Bearer {key}"}
    with TestClient(create_app(service), headers=headers, raise_server_exceptions=False) as found:
        yield found


def answered(answer: Any) -> Any:
    assert answer.status_code == 200, answer.text
    return answer.json()


def uploaded(client: TestClient, content: bytes, name: str) -> dict[str, Any]:
    """A file that is sent in one part: its name goes as JSON, which can hold any."""
    about = {"bytes": len(content), "mime_type": "a/b", "purpose": "fine-tune"}
    upload = answered(client.post("/v1/uploads", json={**about, "filename": name}))["id"]
    part = answered(client.post(f"/v1/uploads/{upload}/parts", files={"data": ("x", content)}))
    done = client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": [part["id"]]})
    return dict(answered(done)["file"])


@pytest.fixture(scope="module")
def plain(client: TestClient) -> str:
    """A file for jobs about which something else is odd."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    return str(uploaded(client, json.dumps({"messages": turns}).encode(), "plain")["id"])


@EVERY
def test_what_a_job_is_called(client: TestClient, service: Service, plain: str, text: str) -> None:
    asked = {"model": "tiny", "training_file": plain}
    suffix, key, value = text[:64] or None, text[:64], text[:512]
    made = answered(
        client.post(JOBS, json={**asked, "suffix": suffix, "metadata": {key: value, "x": "y"}})
    )
    again = answered(client.get(f"{JOBS}/{made['id']}"))
    for seen in (made, again):
        assert seen["user_provided_suffix"] == suffix
        assert seen["metadata"] == {key: value, "x": "y"}
    if text[64:]:
        for odd in ({"suffix": text}, {"metadata": {text: "a"}}):
            assert client.post(JOBS, json={**asked, **odd}).status_code == 400
    found = answered(client.get(JOBS, params={f"metadata[{key}]": value}))["data"]
    assert made["id"] in [job["id"] for job in found]
    assert all(job["metadata"][key] == value for job in found)
    overview = "/v1/fine_tuning/overview"
    for params in ({"metadata": f"{key}={value}"[:512]}, {"q": value}, {"metadata": key}):
        if len(key) + len(value) > 500 and "metadata" in params and params["metadata"] != key:
            continue  # longer than a filter may be
        rows = answered(client.get(overview, params={**params, "limit": 500}))["data"]
        assert made["id"] in [row["id"] for row in rows], params
        assert {"metadata": {key: value, "x": "y"}, "user_provided_suffix": suffix}.items() <= next(
            row for row in rows if row["id"] == made["id"]
        ).items()
    with service.database.read() as session:
        job = session.scalars(select(Job).where(Job.id == made["id"])).one()
    name = naming.final_name(job, "local")
    assert re.fullmatch(r"ft:tiny:local:[A-Za-z0-9._-]*:[A-Za-z0-9]{8}", name)
    asked_for = {"wandb": {"project": text[:128] or "p", "name": text[:128]}, "type": "wandb"}
    refused = client.post(JOBS, json={**asked, "integrations": [asked_for]})
    assert refused.status_code in (200, 400)  # as the host has a login or none
    client.post(f"{JOBS}/{made['id']}/cancel")


@pytest.mark.slow
def test_what_a_file_is_called(client: TestClient, service: Service, plain: str) -> None:
    asked = {"bytes": 9, "mime_type": "a/b", "purpose": "fine-tune"}
    job = answered(client.post(JOBS, json={"model": "tiny", "training_file": plain}))["id"]
    for text in ODD.values():
        sent = {**asked, "filename": text[:1024] or "upload"}
        last = re.split(r"[/\\]", sent["filename"])[-1]
        name = "".join(c for c in last if c > "\x1f" and c != "\x7f")[-255:] or "upload"
        assert answered(client.post("/v1/uploads", json=sent))["filename"] == name
        with service.database.begin() as session:
            session.scalars(select(File).where(File.id == plain)).one().filename = name
        assert answered(client.get(f"/v1/files/{plain}"))["filename"] == name
        row = answered(client.get(f"/v1/fine_tuning/overview/{job}"))["job"]
        assert row["files"] == {plain: name}
        [link] = answered(client.get(f"{JOBS}/{job}/downloads"))["data"]
        assert link["filename"] == name
        for path in (f"/v1/files/{plain}/content", f"/{link['url']}"):
            said = client.get(path).headers["content-disposition"]
            assert said.isascii()
            assert unquote(said.partition("''")[2]) == name
    client.post(f"{JOBS}/{job}/cancel")


def test_what_a_file_holds(client: TestClient, service: Service) -> None:
    records = [
        {
            "messages": [
                {"role": "system", "content": text, "name": text},
                {"role": "user", "content": text},
                {"role": "assistant", "content": [{"type": "text", "text": text}]},
            ]
        }
        for text in ODD.values()
    ]
    place = Workplace(service, Owner.here())
    for ascii_only in (True, False):
        lines = [json.dumps(record, ensure_ascii=ascii_only) for record in records]
        file = uploaded(client, "\n".join(lines).encode(), "a")["id"]
        made = answered(client.post(JOBS, json={"model": "tiny", "training_file": file}))["id"]
        ownership.claim(service.database, place.owner, 1)
        with service.database.read() as session:
            job = session.scalars(select(Job).where(Job.id == made)).one()
        admission.check(place, job)
        assert answered(client.get(f"{JOBS}/{made}"))["status"] == "queued"
        kept = (place.data_of(made) / "training.jsonl").read_bytes()
        assert [json.loads(line) for line in kept.split(b"\n")[:-1]] == records
        client.post(f"{JOBS}/{made}/cancel")


def test_what_an_event_tells(client: TestClient, service: Service, plain: str) -> None:
    made = answered(client.post(JOBS, json={"model": "tiny", "training_file": plain}))["id"]
    notes = [Note(f"note {name}", text, data={text: text}) for name, text in ODD.items()]
    with service.database.begin() as session:
        journal.write(session, made, notes)
    told = answered(client.get(f"{JOBS}/{made}/events", params={"limit": 1000}))["data"]
    pairs = [(event["message"], event["data"]) for event in reversed(told)]
    assert pairs[-len(ODD) :] == [(text, {text: text}) for text in ODD.values()]
    newest = answered(client.get(f"/v1/fine_tuning/overview/{made}"))["events"]
    assert [event["message"] for event in newest] == [message for message, _ in pairs[::-1]][:100]
    client.post(f"{JOBS}/{made}/cancel")


@EVERY
def test_what_a_model_is_called(client: TestClient, plain: str, text: str) -> None:
    shown = text[:512]
    refused = client.post(JOBS, json={"model": shown, "training_file": plain})
    assert refused.status_code == 400
    assert f"Model {shown} is not" in refused.json()["error"]["message"]
    body = {"model": text, "messages": [{"role": "user", "content": text}]}
    for answer in (
        client.get(f"/v1/models/{quote(text, safe='')}"),
        client.post("/v1/chat/completions", json=body),
        client.post("/v1/completions", json={"model": text, "prompt": text}),
    ):
        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == f"The model '{text}' does not exist"
    for path in (f"{JOBS}/{quote(text, safe='')}", f"/v1/files/{quote(text, safe='')}"):
        if text:
            answer = client.get(path)
            assert answer.status_code == 404
            assert text in answer.json()["error"]["message"]


@EVERY
def test_what_is_said_in_a_chat(text: str) -> None:
    spoken = {"role": "user", "content": text, "name": text}
    body = {"model": "tiny", "messages": [spoken], "stop": [text] if text else None}
    asked = ChatRequest.model_validate_json(json.dumps(body)).request(9)
    plain = CompletionRequest.model_validate_json(json.dumps({"model": "t", "prompt": text}))
    # As a line to the model's process, which reads line by line.
    wire = json.dumps(asked)
    assert len(wire.splitlines()) == 1
    assert json.loads(wire)["messages"] == [spoken]
    assert json.loads(wire)["stop"] == ([text] if text else [])
    assert plain.request(16)["prompt"] == text

    async def lines() -> AsyncGenerator[dict[str, Any], None]:
        for piece in (text[: len(text) // 2], text[len(text) // 2 :]):
            yield {"index": 0, "text": piece}
        calls = [{"name": "f", "arguments": json.dumps({text: text})}]
        yield {"index": 0, "calls": calls}
        end = {"finish_reason": "stop", "prompt_tokens": 1, "completion_tokens": 2}
        yield {"index": 0, **end}

    async def both() -> tuple[dict[str, Any], str]:
        answer = Answer(text, 1, is_chat=True)
        streamed = [event async for event in answer.events(lines())]
        return await answer.whole(lines()), "".join(streamed)

    whole, stream = asyncio.run(both())
    message = whole["choices"][0]["message"]
    assert message["content"] == (text or None)
    assert json.loads(message["tool_calls"][0]["function"]["arguments"]) == {text: text}
    assert whole["model"] == text
    events = [json.loads(one[6:]) for one in stream.split("\n\n")[:-2]]
    deltas = [event["choices"][0]["delta"] for event in events]
    assert "".join(delta.get("content", "") for delta in deltas) == text


def test_who_a_key_is_for(service: Service) -> None:
    for text in ODD.values():
        access.create_key(service.database, text, text)
    names = {(key.name, project) for key, project in access.list_keys(service.database)}
    assert names >= {(text, text) for text in ODD.values()}
