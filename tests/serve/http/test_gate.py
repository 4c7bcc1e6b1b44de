"""Who is let in, how often, with what; every refusal is in the envelope and leaves a trace."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError, OperationalError
from starlette.testclient import TestClient

from launcher.serve.app import create_app
from launcher.serve.db.database import Database
from launcher.serve.db.tables import Audit, Key
from launcher.serve.http import access, logs, ratelimit
from launcher.serve.http.failure import ApiError
from launcher.serve.service import Service

ENVELOPE = {"message", "type", "param", "code"}


def refused(answer, status: int, code: str | None = None):
    """The error of an answer that is one, in the envelope and with an id."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    error = answer.json()["error"]
    assert set(error) == ENVELOPE
    assert error["code"] == code
    return error


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic c2s6"])
def test_without_a_key(client, header) -> None:
    client.headers.pop("authorization")
    given = {} if header is None else {"Authorization": header}
    error = refused(client.get("/v1/files", headers=given), 401)
    assert "You didn't provide an API key" in error["message"]


@pytest.mark.parametrize("key", ["sk-wrong", "ü" * 9, "x" * 5000, "sk-demo"])
def test_with_a_wrong_key(client, key) -> None:
    headers = {"Authorization": f"Bearer {key}".encode()}
    refused(client.get("/v1/files", headers=headers), 401, "invalid_api_key")


def test_a_key_is_kept_hashed_and_can_be_revoked(client, service) -> None:
    key = client.headers["authorization"].removeprefix("Bearer ")
    assert client.get("/v1/files").status_code == 200
    (found,) = access.list_keys(service.database)
    assert key not in json.dumps({c.name: str(vars(found[0])[c.name]) for c in Key.__table__.c})
    assert access.revoke_key(service.database, found[0].id)
    assert not access.revoke_key(service.database, "key_none")
    fresh = TestClient(create_app(service), headers=client.headers)
    refused(fresh.get("/v1/files"), 401, "invalid_api_key")


def test_a_demo_key_is_kept_nowhere(service) -> None:
    headers = {"Authorization": "Bearer sk-demo"}
    client = TestClient(create_app(service, "sk-demo"), "http://localhost", headers=headers)
    assert client.get("/v1/files").is_success
    assert access.list_keys(service.database) == []
    refused(
        TestClient(create_app(service), headers=headers).get("/v1/files"), 401, "invalid_api_key"
    )


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("localhost:8700", 200),
        ("LOCALHOST", 200),
        ("[::1]:80", 200),
        ("127.0.0.2:1", 200),
        ("evil.example", 401),
        ("localhost.evil", 401),
        ("127.0.0.1.evil:8700", 401),
        ("0.0.0.0", 401),  # noqa: S104
        ("[::]", 401),
        ("[::1", 401),
        ("127.1", 401),
        ("10.0.0.1", 401),
        ("", 401),
    ],
)
def test_the_demo_key_is_for_this_host(service, host, status) -> None:
    """A page of somebody else, whose name was made to lead here, cannot use it."""
    headers = {"Authorization": "Bearer sk-demo", "Host": host}
    client = TestClient(create_app(service, "sk-demo"), headers=headers)
    assert client.get("/v1/files").status_code == status
    client.headers["Authorization"] = f"Bearer {access.create_key(service.database, 'a', 'b')}"
    assert client.get("/v1/files").status_code == 200


def test_keys_have_a_rate(service) -> None:
    key = access.create_key(service.database, "slow", "ours", requests_per_minute=3)
    client = TestClient(create_app(service), headers={"Authorization": f"Bearer {key}"})
    answers = [client.get("/v1/files") for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [a.headers["x-ratelimit-remaining-requests"] for a in answers] == ["2", "1", "0", "0"]
    assert answers[0].headers["x-ratelimit-limit-requests"] == "3"
    error = refused(answers[3], 429, "rate_limit_exceeded")
    assert error["message"].startswith("Rate limit reached: 3 requests per minute.")
    assert 1 <= int(answers[3].headers["retry-after"]) <= 20


def test_a_bucket_fills_evenly(monkeypatch) -> None:
    clock = 100.0
    monkeypatch.setattr(ratelimit.time, "monotonic", lambda: clock)
    rates = ratelimit.RateLimits()
    for _ in range(60):
        rates.take("a", 60)
    with pytest.raises(ApiError):
        rates.take("a", 60)
    rates.take("b", 60)
    clock += 1.0
    rates.take("a", 60)
    with pytest.raises(ApiError):
        rates.take("a", 60)
    clock += 3600
    assert rates.take("a", 60)["x-ratelimit-remaining-requests"] == "59"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("GET", "/nothing", 404),
        ("GET", "/v1/files/", 404),
        ("GET", "/v1/files/" + "x" * 5000, 404),
        ("GET", "/v1/files/%00", 404),
        ("GET", "/v1/files/%2e%2e%2f%2e%2e%2fetc", 404),
        ("GET", "/v1/files/%ff%fe", 404),
        ("GET", "/v1/files?after=%00", 400),
        ("GET", "/v1/files?limit=" + "9" * 5000, 400),
        ("PUT", "/v1/files", 405),
        ("PATCH", "/v1/files/x", 405),
        ("POST", "/healthz", 405),
        ("POST", "/v1/fine_tuning/alpha/graders/run/now", 404),
        ("GET", "/v1/fine_tuning/alpha/graders/run", 405),
    ],
)
def test_urls_that_are_none(client, method, path, status) -> None:
    answer = client.request(method, path)
    refused(answer, status)
    if status == 405:
        assert answer.headers["allow"]


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b"{", "Expecting"),
        (b"", "required"),
        (b"null", "valid"),
        (b"[1]", "valid"),
        (b"\xff", "byte 1 is not UTF-8"),
        (b'{"bytes": NaN}', "NaN is no JSON"),
        (b'{"bytes": ' + b"1" * 5000 + b"}", "limit"),
        (b"[" * 10_000, "nested too deeply"),
        (b'{"a": ' + b"[" * 70 + b"]" * 70 + b"}", "nested too deeply"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        ('{"a": 1}'.encode("utf-16"), "UTF-16"),
        ('{"a": 1}'.encode("utf-16-le"), "UTF-16"),
        (b'{"filename": "a\\u0000"}', "U+0000"),
        (b'{"filename": ["\\ud800"]}', "surrogate"),
        (b'{"\\udfff": 1}', "surrogate"),
        (b'{"a": "' + b"x" * 70_000 + b'\\u0000"}', "U+0000"),
        (b'{"a": [' + b"[]," * 100_000 + b"[]]}", "more than 12,000 values"),
        (b'{"a": [' + b"1," * 1_000_000 + b"1]}", "more than 12,000 values"),
        (b'{"a": [' + b'"",' * 1_000_000 + b'""]}', "more than 12,000 values"),
        (b"{" + b'"\\"":1,' * 100_000 + b"}", "more than 12,000 values"),
    ],
)
def test_bodies_that_are_no_json(client, body, found) -> None:
    headers = {"Content-Type": "application/json"}
    error = refused(client.post("/v1/uploads", content=body, headers=headers), 400)
    assert found in error["message"]


def test_bodies_have_limits(client, service) -> None:
    service.site.limits.body_bytes = 1000
    headers = {"Content-Type": "application/json"}
    body = b'{"a": "' + b"x" * 1000 + b'"}'
    refused(client.post("/v1/uploads", content=body, headers=headers), 413)
    refused(client.post("/v1/uploads", content=iter([body]), headers=headers), 413)
    refused(client.post("/v1/uploads", files={"x": body}), 413)


def test_of_a_stranger_no_body_is_read(service) -> None:
    pulled = []

    def body():
        for _ in range(3):
            pulled.append(1)
            yield b"[" * 1_000_000

    async def ask(path: str) -> list[dict]:
        pieces, sent = body(), []

        async def receive():
            return {"type": "http.request", "body": next(pieces, b""), "more_body": True}

        async def send(message):
            sent.append(message)

        headers = [(b"content-type", b"application/json"), (b"transfer-encoding", b"chunked")]
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode()}
        scope |= {"query_string": b"", "headers": headers, "client": ("testclient", 1)}
        await create_app(service)(scope, receive, send)
        return sent

    for path, status in (("/nothing", 404), ("/healthz", 405), ("/v1/uploads", 401)):
        assert asyncio.run(ask(path))[0]["status"] == status
    assert not pulled


def test_without_its_database_the_service_says_so(client, service, monkeypatch, caplog) -> None:
    def away(*_):
        raise OperationalError("SELECT", {"digest": "private"}, OSError("gone"))

    assert client.get("/v1/files").status_code == 200
    monkeypatch.setattr(Database, "read", away)
    monkeypatch.setattr(access, "_REMEMBERED_S", -1.0)
    assert refused(client.get("/v1/files"), 503)["type"] == "server_error"
    monkeypatch.setattr(access, "_REMEMBERED_S", 1000.0)
    assert refused(client.get("/v1/files"), 503)
    assert client.get("/readyz").status_code == 503
    numbers = client.get("/metrics")
    assert numbers.status_code == 200
    assert "launcher_requests_total" in numbers.text
    assert not [record for record in caplog.records if record.exc_info]


def test_what_clients_send_is_in_no_message_of_the_database(service) -> None:
    with pytest.raises(DBAPIError) as found, service.database.begin() as session:
        session.execute(text("INSERT INTO nowhere VALUES (:it)"), {"it": "private"})
    assert "private" not in str(found.value)


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "gzip, gzip"])
def test_compressed_bodies_are_refused(client, encoding) -> None:
    for path in ("/v1/uploads", "/v1/files"):
        answer = client.post(path, content=b"\x1f\x8b", headers={"Content-Encoding": encoding})
        refused(answer, 415)


def test_what_may_change_something_leaves_a_row(client, service, stranger) -> None:
    made = client.post(
        "/v1/files", files={"file": ("a", b"x")}, data={"purpose": "user_data"}
    ).json()["id"]
    client.get(f"/v1/files/{made}")
    client.delete(f"/v1/files/{made}", headers=stranger)
    client.post("/v1/uploads", content=b"{")
    client.post("/v1/uploads", headers={"Authorization": "Bearer wrong"})
    client.delete(f"/v1/files/{made}")
    with service.database.read() as session:
        rows = list(
            session.scalars(select(Audit).where(Audit.key_id.is_not(None)).order_by(Audit.number))
        )
    assert [(row.action, row.object, row.status) for row in rows] == [
        ("POST /v1/files", made, 200),
        ("DELETE /v1/files/{file_id}", made, 404),
        ("POST /v1/uploads", "", 400),
        ("DELETE /v1/files/{file_id}", made, 200),
    ]
    assert rows[0].key_id == rows[3].key_id != rows[1].key_id
    assert rows[0].address == "testclient"


def test_keys_that_come_and_go_leave_rows(service) -> None:
    access.create_key(service.database, "a", "ours")
    ((key, _),) = access.list_keys(service.database)
    for _ in range(2):
        access.revoke_key(service.database, key.id)
    with service.database.read() as session:
        rows = list(session.scalars(select(Audit).order_by(Audit.number)))
    assert [row.action for row in rows] == ["keys create", "keys revoke"]
    assert {(row.object, row.project_id) for row in rows} == {(key.id, key.project_id)}


def test_who_has_hung_up_is_no_defect_in_the_audit(service) -> None:
    key = access.create_key(service.database, "a", "ours")

    async def ask() -> None:
        async def receive():
            return {"type": "http.disconnect"}

        async def send(_):
            raise AssertionError("there is nobody to tell")

        headers = [(b"authorization", f"Bearer {key}".encode()), (b"transfer-encoding", b"chunked")]
        headers += [(b"content-type", b"multipart/form-data; boundary=b")]
        scope = {"type": "http", "method": "POST", "path": "/v1/files", "raw_path": b"/v1/files"}
        scope |= {"query_string": b"", "headers": headers, "client": ("testclient", 1)}
        await create_app(service)(scope, receive, send)

    asyncio.run(ask())
    with service.database.read() as session:
        last = session.scalars(select(Audit).order_by(Audit.number.desc())).first()
    assert (last.action, last.status) == ("POST /v1/files", 499)


def test_what_nobody_expects_is_an_answer_and_a_traceback(service, caplog) -> None:
    app = create_app(service, "sk-demo")

    def broken() -> None:
        raise ZeroDivisionError("on purpose")

    app.get("/v1/broken")(broken)
    headers = {"Authorization": "Bearer sk-demo"}
    client = TestClient(app, "http://127.0.0.1", headers=headers)
    answer = client.get("/v1/broken")
    error = refused(answer, 500)
    assert error["type"] == "server_error"
    assert answer.headers["x-request-id"] in error["message"]
    assert "on purpose" not in answer.text
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.request_id == answer.headers["x-request-id"]
    assert "on purpose" in record.exc_text or "on purpose" in caplog.text


def test_a_store_that_fails_is_no_defect(client, service: Service) -> None:
    made = client.post("/v1/files", files={"file": ("a", b"x")}, data={"purpose": "evals"})
    service.store.delete(service.store.hashes(-60)[0])
    assert refused(client.get(f"/v1/files/{made.json()['id']}/content"), 503)


def test_logs_are_for_people_or_programs() -> None:
    record = logging.LogRecord("launcher.serve", logging.INFO, "", 0, "request", (), None)
    vars(record).update(request_id="req_1", status=200, secret="no", key=None)
    told = json.loads(logs._Json().format(record))
    assert told == {
        "time": told["time"],
        "level": "info",
        "message": "request",
        "request_id": "req_1",
        "status": 200,
    }
    assert logs._Text().format(record).endswith("info    request request_id=req_1 status=200")
