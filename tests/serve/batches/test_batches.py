"""Batches over HTTP: what is refused, what is wrong with files, how a batch ends and what it makes.

Requests for a model that does not exist are answered at once, by 404.
"""

from __future__ import annotations

import io
import json
import resource
import signal
import subprocess
import threading
import time
from typing import Any

import pytest
from openai.types import Batch as OfficialBatch
from sqlalchemy import select
from starlette.testclient import TestClient

from launcher import entry
from launcher.core.errors import StorageError
from launcher.serve.batches import claims, lines, steps, worker
from launcher.serve.batches.journal import AnswerJournal, Noted, noted
from launcher.serve.db.tables import Batch, BatchState, Delivery, File
from launcher.serve.http import access
from launcher.serve.jobs.ownership import Owner
from launcher.serve.service import Service
from support.served import wait_until

CHAT = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Anna has 3 apples and gets 4 more. How many?"}]


def request(custom_id: str, model: str = "nobody", **changed: Any) -> dict[str, Any]:
    body = {"model": model, "messages": HELLO}
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": body, **changed}


def upload(client: Any, records: list[Any], purpose: str = "batch") -> str:
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in records)
    sent = {"file": ("requests.jsonl", text.encode())}
    answer = client.post("/v1/files", files=sent, data={"purpose": purpose})
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def create(client: Any, file: str, **more: Any) -> Any:
    body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h", **more}
    return client.post("/v1/batches", json=body)


def made(client: Any, records: list[Any], **more: Any) -> str:
    answer = create(client, upload(client, records), **more)
    assert answer.status_code == 200, answer.text
    return answer.json()["id"]


def retrieved(client: Any, batch: str) -> dict[str, Any]:
    found = client.get(f"/v1/batches/{batch}").json()
    OfficialBatch.model_validate(found, strict=True)
    return found


def ended(client: Any, batch: str, within_s: float = 30.0) -> dict[str, Any]:
    final = ("completed", "failed", "cancelled", "expired")
    wait_until(lambda: retrieved(client, batch)["status"] in final, "its end", within_s)
    return retrieved(client, batch)


def content(client: Any, file: str) -> list[dict[str, Any]]:
    text = client.get(f"/v1/files/{file}/content").text
    return [json.loads(line) for line in text.splitlines()]


def test_what_fails_is_told_in_the_error_file(client: TestClient, service: Service) -> None:
    records = [request(f"r{n}") for n in range(9)]
    records[4]["body"] = {"model": "nobody"}
    found = ended(client, made(client, records, metadata={"a": "b"}))
    assert found["status"] == "completed"
    assert found["request_counts"] == {"total": 9, "completed": 0, "failed": 9}
    assert (found["output_file_id"], found["metadata"]) == (None, {"a": "b"})
    assert (found["model"], found["usage"]["total_tokens"]) == ("nobody", 0)
    assert found["expires_at"] - found["created_at"] == 86_400
    assert found["created_at"] <= found["in_progress_at"] <= found["finalizing_at"]
    assert found["finalizing_at"] <= found["completed_at"]
    assert found["cancelling_at"] is found["failed_at"] is found["expired_at"] is None
    told = content(client, found["error_file_id"])
    assert [one["custom_id"] for one in told] == [f"r{n}" for n in range(9)]
    assert len({one["id"] for one in told}) == 9
    codes = [one["response"]["body"]["error"]["code"] for one in told]
    assert codes[:4] == ["model_not_found"] * 4
    assert told[0]["response"]["status_code"] == 404
    assert told[0]["response"]["request_id"].startswith("req_")
    assert told[0]["error"] is None
    assert told[4]["response"]["status_code"] == 400
    assert told[4]["response"]["body"]["error"]["param"] == "messages"
    file = client.get(f"/v1/files/{found['error_file_id']}").json()
    assert file["purpose"] == "batch_output"
    assert file["filename"] == f"{found['id']}_error.jsonl"
    assert "expires_at" not in file
    assert list(service.batches.iterdir()) == []
    assert 'launcher_batches{state="completed"} 1.0' in client.get("/metrics").text


def test_files_that_a_batch_makes_go_when_the_client_wishes(client: TestClient) -> None:
    expiry = {"anchor": "created_at", "seconds": 3600}
    found = ended(client, made(client, [request("a")], output_expires_after=expiry))
    file = client.get(f"/v1/files/{found['error_file_id']}").json()
    assert file["expires_at"] == file["created_at"] + 3600


def test_batches_are_listed_and_are_their_projects_alone(
    client: TestClient, stranger: dict[str, str]
) -> None:
    file = upload(client, [request("a")])
    batches = [create(client, file).json()["id"] for _ in range(3)]
    listed = client.get("/v1/batches?limit=2").json()
    assert [one["id"] for one in listed["data"]] == batches[:0:-1]
    assert (listed["has_more"], listed["last_id"]) == (True, batches[1])
    rest = client.get(f"/v1/batches?after={batches[1]}").json()
    assert ([one["id"] for one in rest["data"]], rest["has_more"]) == (batches[:1], False)
    assert client.get("/v1/batches?after=batch_1").status_code == 400
    assert client.get("/v1/batches", headers=stranger).json()["data"] == []
    for path in (f"/v1/batches/{batches[0]}", "/v1/batches/nothing"):
        assert client.get(path, headers=stranger).status_code == 404
        assert client.post(f"{path}/cancel", headers=stranger).status_code == 404
    body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    assert client.post("/v1/batches", json=body, headers=stranger).status_code == 400
    for batch in batches:
        assert ended(client, batch)["status"] == "completed"


@pytest.mark.parametrize(
    ("changed", "param", "message"),
    [
        ({"endpoint": "/v1/embeddings"}, "endpoint", "Batches for '/v1/embeddings' are not"),
        ({"completion_window": "1h"}, "completion_window", "24h"),
        ({"input_file_id": "file-1"}, "input_file_id", "invalid input_file_id: file-1"),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
            "output_expires_after.seconds",
            "3600",
        ),
        ({"priority": 1}, "priority", "Unknown parameter"),
    ],
)
def test_what_cannot_be_is_refused(
    client: TestClient, changed: dict[str, Any], param: str, message: str
) -> None:
    answer = create(client, "file-0", **changed)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert message in answer.json()["error"]["message"]


def test_files_of_another_purpose_or_too_large_are_refused(
    client: TestClient, service: Service
) -> None:
    answer = create(client, upload(client, [request("a")], "evals"))
    assert answer.status_code == 400
    assert "has purpose 'evals', but needs 'batch'" in answer.json()["error"]["message"]
    file = upload(client, [request("a")])
    service.site.batches.file_bytes = 10
    assert "at most 10 bytes" in create(client, file).json()["error"]["message"]


def test_a_project_has_so_many_batches_and_makes_one_once(
    client: TestClient, service: Service
) -> None:
    service.site.quota.batches = 1
    file = upload(client, [request("a")])
    key = {"Idempotency-Key": "one"}
    body = {"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"}
    first = client.post("/v1/batches", json=body, headers=key).json()
    ended(client, first["id"])
    assert client.post("/v1/batches", json=body, headers=key).json()["id"] == first["id"]
    service.site.quota.batches = 0
    answer = create(client, file)
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    service.site.quota.batches, service.site.quota.stored_bytes = None, 1
    assert create(client, file).json()["error"]["code"] == "insufficient_quota"


def test_room_for_the_answers_of_open_batches_is_kept_free(
    client: TestClient, service: Service
) -> None:
    file = upload(client, [request("a")])
    size = client.get(f"/v1/files/{file}").json()["bytes"]
    add_batches(service, ["ours"], input_bytes=size, owner="x x 1 0", lease_until=2.0**40)
    service.site.quota.stored_bytes = 3 * size - 1
    answer = create(client, file)
    assert answer.json()["error"]["code"] == "insufficient_quota"
    assert (
        f"{size:,} kept free for batches that have not ended" in answer.json()["error"]["message"]
    )
    with service.database.begin() as session:
        session.scalars(select(Batch)).one().state = BatchState.completed
    batch = create(client, file).json()["id"]
    with service.database.read() as session:
        bytes_kept = session.scalars(select(Batch.input_bytes).where(Batch.id == batch)).one()
    assert bytes_kept == size


BAD = [
    ("", "empty_file", None),
    ("[1]", "invalid_json_line", None),
    ("{", "invalid_json_line", None),
    ('{"a": 1, "a": 2}', "invalid_json_line", None),
    ('{"a": ' + "[" * 100_000, "invalid_json_line", None),
    ("\udcff", "invalid_json_line", None),
    ('{"a": NaN}', "invalid_json_line", None),
    ('{"a": 1e999}', "invalid_json_line", None),
    ('{"a": ' + "9" * 5000 + "}", "invalid_json_line", None),
    ('{"\\ud800": 1, "\\ud800": 2}', "invalid_json_line", None),
    (request("\ud800"), "invalid_json_line", None),
    (request("a", "\ud800"), "invalid_json_line", None),
    (request("a", "\0"), "invalid_json_line", None),
    ({**request("a"), "\ud800": 1}, "invalid_json_line", None),
    (request("a", body={"a": json.loads("[" * 500 + "]" * 500)}), "invalid_json_line", None),
    ({"custom_id": "x", "method": "POST", "url": CHAT}, "missing_required_parameter", "body"),
    (request(""), "invalid_custom_id", "custom_id"),
    (request(5), "invalid_custom_id", "custom_id"),
    (request("x" * 513), "invalid_custom_id", "custom_id"),
    (request("a", method="GET"), "invalid_method", "method"),
    (request("a", url="/v1/responses"), "invalid_url", "url"),
    (request("a", body=[]), "invalid_body", "body"),
    (request("a", body={"stream": True}), "unsupported_parameter", "body.stream"),
    (request("a", priority=1), "unknown_parameter", "priority"),
]


@pytest.mark.parametrize(("line", "code", "param"), BAD)
def test_what_is_wrong_with_a_line_is_told(line, code, param, tmp_path) -> None:
    text = line if isinstance(line, str) else json.dumps(line)
    file = tmp_path / "file"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with open(file, "rb") as opened:
        found = lines.check(opened, tmp_path / "kept", CHAT, 10, 1 << 20)
    [fault] = found.faults
    assert (fault["code"], fault["param"]) == (code, param)
    assert fault["line"] == (1 if text else None)
    assert fault["message"].encode()
    assert "\0" not in fault["message"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "The line is no JSON object: write each request as an object"),
        ('{"a": }', "The line is broken JSON at column 7 (Expecting value): each line has"),
        ("\udcff", "The line is no text: byte 1 (0xff) is not UTF-8: if the file is in Latin-1"),
        ('{"a": NaN}', "The line cannot be read: NaN is no JSON. Mend or remove it."),
        ('{"a": 1, "a": 2}', "The line has the key 'a' twice in one object: keep one of the two."),
    ],
)
def test_faults_say_what_to_do(line, message, tmp_path) -> None:
    content = io.BytesIO(line.encode("utf-8", "surrogateescape"))
    [fault] = lines.check(content, tmp_path / "draft", CHAT, 10, 1 << 20).faults
    assert fault["message"].startswith(message)


@pytest.mark.parametrize("padding", ["", "x" * 100_000])
def test_a_model_that_is_no_name_is_an_error_of_its_request(
    client: TestClient, padding: str
) -> None:
    """In a large file, too, which another process looks at."""
    records = [request("good"), request("a", []), request("b", {}), request("c", "nobody" * 100)]
    records[0]["body"]["user"] = padding
    found = ended(client, made(client, records))
    assert (found["status"], found["model"]) == ("completed", None)
    assert found["request_counts"] == {"total": 4, "completed": 0, "failed": 4}
    told = content(client, found["error_file_id"])
    assert [one["response"]["status_code"] for one in told] == [404, 400, 400, 404]


def test_a_long_name_of_a_model_is_not_the_batchs(tmp_path) -> None:
    for length, model in ((256, "m" * 256), (257, None)):
        text = json.dumps(request("a", "m" * length)).encode()
        assert lines.check(io.BytesIO(text), tmp_path / "draft", CHAT, 10, 1 << 20).model == model


def test_requests_are_kept_as_their_clients_have_written_them(tmp_path) -> None:
    """Escaped, they could become too large to be answered."""
    text = json.dumps(request("\u6f22", "\u6f22" * 1000), ensure_ascii=False).encode()
    lines.checked(io.BytesIO(text), len(text), tmp_path / "kept", CHAT, 10, 1 << 20)
    assert (tmp_path / "kept").stat().st_size < len(text)
    found = lines.Requests(tmp_path / "kept").of(0)
    assert len(found.body) < len(text)
    assert json.loads(found.body) == request("", "\u6f22" * 1000)["body"]


def test_a_file_that_is_cut_off_is_not_taken_for_whole(tmp_path) -> None:
    """Whoever sent it to the process that looks at it has died."""
    text = json.dumps(request("a")).encode() + b"\n"
    for num_bytes, answer in (
        (len(text), {"total": 1, "model": "nobody", "faults": []}),
        (999, None),
    ):
        words = [str(num_bytes), str(tmp_path / "draft"), CHAT, "10", "100000"]
        command = entry.command("launcher.serve.batches.lines", *words)
        said = subprocess.run(command, input=text, stdout=subprocess.PIPE, check=True).stdout
        assert (json.loads(said) if said else None) == answer
        assert (tmp_path / "draft").exists() == (answer is not None)
    with pytest.raises(RuntimeError, match="ended with 0"):
        lines.checked(io.BytesIO(text), 100_000, tmp_path / "kept", CHAT, 10, 1 << 20)
    assert list(tmp_path.iterdir()) == []


def test_a_look_at_a_large_file_is_stopped_or_finds_no_room(tmp_path) -> None:
    text = json.dumps(request("a")).encode() * 1000
    with pytest.raises(lines.StoppedError):
        lines.checked(
            *(io.BytesIO(text), len(text), tmp_path / "kept", CHAT, 10, 1 << 20), lambda: True
        )
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="HINT: a file stands where a folder is needed"):
        lines.checked(io.BytesIO(text), len(text), tmp_path / "file/kept", CHAT, 10, 1 << 20)


def test_many_faults_are_told_at_once_and_fail_the_batch(client: TestClient) -> None:
    records = [request("a"), "", request("a"), "{", request("b", method="PUT")]
    found = ended(client, made(client, records))
    assert found["status"] == "failed"
    assert found["failed_at"] >= found["created_at"]
    assert found["in_progress_at"] is found["output_file_id"] is found["error_file_id"] is None
    told = [(one["line"], one["code"]) for one in found["errors"]["data"]]
    assert told == [(3, "duplicate_custom_id"), (4, "invalid_json_line"), (5, "invalid_method")]


def test_a_large_file_is_looked_at_by_another_process(tmp_path) -> None:
    text = "\n".join(json.dumps(request(f"r{n}")) for n in range(1000))
    for most, faults in ((1000, []), (999, ["too_many_requests"])):
        (tmp_path / "file").write_text(text)
        with open(tmp_path / "file", "rb") as opened:
            found = lines.checked(opened, len(text), tmp_path / "kept", CHAT, most, 1 << 20)
        assert [fault["code"] for fault in found.faults] == faults
    assert lines.Requests(tmp_path / "kept").of(999).custom_id == "r999"
    with open(tmp_path / "file", "rb") as opened:
        found = lines.checked(opened, len(text), tmp_path / "other", CHAT, 1000, 10)
    assert [fault["code"] for fault in found.faults] == ["invalid_json_line"]


def add_batches(service: Service, projects: list[str], **columns: Any) -> list[str]:
    """Rows without a request before them, one for each project; their ids."""
    names = [f"batch_{number}" for number in range(len(projects))]
    common = {"endpoint": CHAT, "input_file": "file-gone", "created_at": 0, "expires_at": 1 << 40}
    with service.database.begin() as session:
        for name, project in zip(names, projects, strict=True):
            owner = access.find_project(session, project).id
            session.add(Batch(id=name, project_id=owner, **{**common, **columns}))
    return names


def test_a_file_that_is_deleted_fails_its_batch(client: TestClient, service: Service) -> None:
    [batch] = add_batches(service, ["ours"])
    found = ended(client, batch)
    assert (found["status"], found["errors"]["data"][0]["code"]) == ("failed", "file_not_found")


def test_what_is_cancelled_before_its_file_is_looked_at_makes_none(
    client: TestClient, service: Service
) -> None:
    [batch] = add_batches(service, ["ours"], state=BatchState.cancelling)
    found = ended(client, batch)
    assert (found["status"], found["output_file_id"], found["error_file_id"]) == (
        *("cancelled", None, None),
    )


def test_a_batch_whose_folder_is_lost_fails(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_RETRY_S", 0.0)
    [batch] = add_batches(service, ["ours"], state=BatchState.in_progress, total=3)
    found = ended(client, batch)
    assert (found["status"], found["errors"]["data"][0]["code"]) == ("failed", "server_error")


def test_a_batch_expires_and_keeps_what_is_done(client: TestClient, service: Service) -> None:
    """A server has answered two of three requests, and died; then the window is over."""
    batch = made(client, [request(f"r{n}") for n in range(3)])
    ended(client, batch)
    folder = service.batches / batch
    folder.mkdir()
    records = [request(f"r{n}") for n in range(3)]
    text = "".join(json.dumps([one["custom_id"], one["body"]]) + "\n" for one in records)
    (folder / "requests.jsonl").write_text(text)
    journal = AnswerJournal(folder, 1)
    told = {"id": "batch_req_1", "custom_id": "r2", "response": {"status_code": 200}, "error": None}
    journal.add(2, told, is_ok=True, tokens=(5, 7))
    journal.add(2, {**told, "id": "batch_req_2"}, is_ok=True, tokens=(5, 7))
    journal.close()
    with open(folder / "answers-2.jsonl", "ab") as file:
        file.write(b'0 1 5 7 {"id": "torn')
    with service.database.begin() as session:
        row = session.scalars(select(Batch)).one()
        row.state, row.error_file, row.owner = BatchState.in_progress, None, None
        row.expires_at = int(time.time()) - 1
    wait_until(lambda: retrieved(client, batch)["status"] == "expired", "its end")
    found = retrieved(client, batch)
    assert found["expired_at"] >= found["finalizing_at"]
    assert found["request_counts"] == {"total": 3, "completed": 1, "failed": 0}
    assert (found["usage"]["input_tokens"], found["usage"]["output_tokens"]) == (5, 7)
    assert content(client, found["output_file_id"]) == [told]
    errors = content(client, found["error_file_id"])
    assert [one["custom_id"] for one in errors] == ["r0", "r1"]
    assert {one["error"]["code"] for one in errors} == {"batch_expired"}
    assert errors[0]["response"] is None


def test_a_batch_that_is_not_looked_at_in_time_expires(
    client: TestClient, service: Service
) -> None:
    """Its file is not read any more."""
    [batch] = add_batches(service, ["ours"], expires_at=1)
    found = ended(client, batch)
    assert (found["status"], found["in_progress_at"], found["finalizing_at"]) == (
        *("expired", None, None),
    )
    assert found["output_file_id"] is found["error_file_id"] is None


def broken_at(number: int, error: Exception, times: int = 1 << 30) -> Any:
    """`Requests.of` that fails at a request while it is to be answered."""
    whole = lines.Requests.of
    left = iter(range(times))

    def of(self: lines.Requests, wanted: int) -> lines.BatchRequest:
        is_answering = threading.current_thread().name.startswith("asyncio")
        if is_answering and wanted == number and next(left, None) is not None:
            raise error
        return whole(self, wanted)

    return of


def test_what_is_answered_is_kept_whatever_fault_ends_a_batch(
    client: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    service.site.batches.concurrency = 1
    monkeypatch.setattr(worker, "_RETRY_S", 0.0)
    monkeypatch.setattr(lines.Requests, "of", broken_at(5, KeyError("x")))
    found = ended(client, made(client, [request(f"r{n}") for n in range(9)]))
    assert found["status"] == "failed"
    [fault] = found["errors"]["data"]
    assert (fault["code"], fault["line"]) == ("server_error", None)
    assert "internal error with this batch (KeyError)" in fault["message"]
    assert found["request_counts"]["failed"] >= 5
    told = content(client, found["error_file_id"])
    assert [one["custom_id"] for one in told] == [f"r{n}" for n in range(9)]
    codes = [(one["error"] or {}).get("code") for one in told]
    assert codes[:6] == [None] * 5 + ["server_error"]
    assert list(service.batches.iterdir()) == []


def test_a_fault_that_passes_fails_no_batch(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_RETRY_S", 0.0)
    error = RuntimeError("can't start new thread")
    monkeypatch.setattr(lines.Requests, "of", broken_at(2, error, worker._MOST_FAULTS + 2))
    found = ended(client, made(client, [request(f"r{n}") for n in range(4)]))
    assert (found["status"], found["request_counts"]["failed"]) == ("completed", 4)


def test_what_is_answered_is_kept_where_requests_are_lost(service: Service) -> None:
    [batch] = add_batches(service, ["ours"], state=BatchState.in_progress, total=3)
    folder = service.batches / batch
    folder.mkdir()
    journal = AnswerJournal(folder, 1)
    told = {"custom_id": "r1"}
    journal.add(1, told, is_ok=True, tokens=(5, 7))
    journal.close()
    owner = Owner("here", "x", 1, 0.0)
    claims.claim(service.database, owner, {}, ())
    steps.give_up(service, owner, batch, KeyError(), threading.Event())
    with service.database.read() as session:
        row = session.scalars(select(Batch)).one()
        assert (row.state, row.completed, row.error_file) == (BatchState.failed, 1, None)
        sha256 = session.scalars(select(File.sha256).where(File.id == row.output_file)).one()
    with service.store.open(sha256) as file:
        assert json.loads(file.read()) == told
    assert not folder.exists()


def test_an_end_that_is_stopped_leaves_all_as_it_is(service: Service) -> None:
    [batch] = add_batches(service, ["ours"], state=BatchState.in_progress, total=1)
    folder = service.batches / batch
    folder.mkdir()
    journal = AnswerJournal(folder, 1)
    journal.add(0, {"a": 1}, is_ok=True, tokens=(0, 0))
    journal.close()
    owner, halt = Owner("here", "x", 1, 0.0), threading.Event()
    claims.claim(service.database, owner, {}, ())
    halt.set()
    for work, state in (
        (lambda: steps.give_up(service, owner, batch, KeyError(), halt), BatchState.in_progress),
        (lambda: steps.end(service, owner, batch, halt), BatchState.finalizing),
    ):
        with pytest.raises(lines.StoppedError):
            work()
        with service.database.read() as session:
            assert session.scalars(select(Batch.state)).one() is state
    assert sorted(noted(folder)) == [0]


def test_half_a_line_of_a_journal_is_none(tmp_path) -> None:
    journal = AnswerJournal(tmp_path, 1)
    first = journal.add(7, {"a": 1}, is_ok=True, tokens=(1, 2))
    journal.close()
    with open(tmp_path / "answers-1.jsonl", "ab") as file:
        file.write(b'8 1 1 2 {"a": ')
    journal = AnswerJournal(tmp_path, 3)
    journal.add(7, {"a": 2}, is_ok=False, tokens=(0, 0))
    journal.add(9, {"a": 3}, is_ok=False, tokens=(0, 0))
    journal.close()
    found = noted(tmp_path)
    assert (sorted(found), found[7]) == ([7, 9], first)
    assert isinstance(found[9], Noted)
    assert json.loads(found[9].line()) == {"a": 3}
    assert not found[9].is_ok


def test_an_answer_after_a_full_disk_is_read_again(
    tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice there is room for half a line only."""
    journal = AnswerJournal(tmp_path, 1)
    journal.add(0, {"a": 0}, is_ok=True, tokens=(0, 0))
    size = journal._path.stat().st_size
    for number in (1, 2):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, before[1]))
        try:
            with pytest.raises(StorageError):
                journal.add(number, {"a": number}, is_ok=True, tokens=(0, 0))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
            signal.signal(signal.SIGXFSZ, handler)
        assert journal._path.stat().st_size == size
    third = journal.add(3, {"a": 3}, is_ok=True, tokens=(0, 0))
    journal.close()
    found = noted(tmp_path)
    assert sorted(found) == [0, 3]
    assert found[3] == third
    assert json.loads(third.line()) == {"a": 3}


@pytest.mark.parametrize("left", [b"1", b"12 1 0 0 7 {"])
def test_the_rest_of_a_line_is_no_part_of_the_next_answer(tmp_path, left: bytes) -> None:
    (tmp_path / "answers-1.jsonl").write_bytes(left)
    journal = AnswerJournal(tmp_path, 1)
    journal.add(2, {"a": 2}, is_ok=True, tokens=(0, 0))
    journal.add(3, {"a": 3}, is_ok=True, tokens=(0, 0))
    journal.close()
    assert sorted(noted(tmp_path)) == [3]


def test_batches_are_one_servers_and_those_of_projects_with_few_come_first(
    service: Service,
) -> None:
    projects = ["red"] * 14 + [f"p{number}" for number in range(6)]
    add_batches(service, projects, state=BatchState.in_progress)
    one, two = Owner("here", "x", 1, 0.0), Owner("there", "x", 1, 0.0)
    first = claims.claim(service.database, one, {}, ["batch_0"])
    names = [batch.id for batch, _ in first]
    assert sorted(names) == ["batch_1", *[f"batch_{n}" for n in range(14, 20)], "batch_2"]
    second = claims.claim(service.database, two, {}, ())
    assert [batch.id for batch, _ in second] == [f"batch_{n}" for n in (0, 3, 4, 5)]
    assert {project for _, project in second} == {"red"}
    assert {batch.claims for batch, _ in second} == {1}
    held = {batch.id: batch for batch, _ in second}
    assert claims.claim(service.database, two, held, ()) == []
    claims.release(service.database, one, names[:1])
    with service.database.begin() as session:
        session.scalars(select(Batch).where(Batch.id == "batch_4")).one().owner = one.name
    with (
        pytest.raises(claims.LostBatchError),
        claims.owned(service.database, two, "batch_4"),
    ):
        pass


def test_webhooks_tell_of_the_end(client: TestClient, service: Service) -> None:
    service.site.webhooks.allow = ["http://127.0.0.1:9"]
    kinds = ["batch.completed", "batch.failed"]
    asked = {"name": "mine", "url": "http://127.0.0.1:9/", "event_types": kinds}
    endpoint = client.post("/v1/webhook_endpoints", json=asked)
    assert endpoint.status_code == 200, endpoint.text
    batches = [made(client, [request("a")]), made(client, ["{"])]
    for batch in batches:
        ended(client, batch)
    with service.database.read() as session:
        told = list(session.scalars(select(Delivery).order_by(Delivery.type)))
    assert [one.type for one in told] == kinds
    assert [json.loads(one.body)["data"]["id"] for one in told] == batches
