"""Files: what is taken, what is refused and in which words, paging, and what becomes of bytes."""

from __future__ import annotations

import json
import sqlite3

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from starlette.testclient import TestClient

from launcher.serve.app import create_app
from launcher.serve.files import project_files
from launcher.serve.http import access
from launcher.serve.service import Service
from launcher.serve.store import Store

LINE = json.dumps({"messages": [{"role": "user", "content": "Hi"}]}).encode() + b"\n"


def upload(client, content=LINE, name="data.jsonl", purpose="fine-tune", **more):
    return client.post(
        "/v1/files", files={"file": (name, content)}, data={"purpose": purpose, **more}
    )


def blobs(service: Service) -> list[str]:
    return service.store.hashes(older_than_s=-60)


def test_a_file_comes_and_goes(client: TestClient, service: Service) -> None:
    made = upload(client).json()
    assert made == {
        "id": made["id"],
        "object": "file",
        "bytes": len(LINE),
        "created_at": made["created_at"],
        "filename": "data.jsonl",
        "purpose": "fine-tune",
        "status": "processed",
        "status_details": None,
    }
    assert client.get(f"/v1/files/{made['id']}").json() == made
    content = client.get(f"/v1/files/{made['id']}/content")
    assert content.content == LINE
    assert content.headers["content-type"] == "application/octet-stream"
    assert content.headers["content-disposition"] == "attachment; filename*=utf-8''data.jsonl"
    gone = client.delete(f"/v1/files/{made['id']}")
    assert gone.json() == {"id": made["id"], "object": "file", "deleted": True}
    assert blobs(service) == []
    again = client.delete(f"/v1/files/{made['id']}")
    assert again.status_code == 404
    assert again.json()["error"] == {
        "message": f"No such File object: {made['id']}",
        "type": "invalid_request_error",
        "param": "id",
        "code": None,
    }


def test_the_same_content_is_kept_once_and_until_the_last_file_goes(client, service) -> None:
    first, second = upload(client).json(), upload(client, name="b.jsonl").json()
    assert len(blobs(service)) == 1
    client.delete(f"/v1/files/{first['id']}")
    assert client.get(f"/v1/files/{second['id']}/content").content == LINE
    client.delete(f"/v1/files/{second['id']}")
    assert blobs(service) == []


@pytest.mark.parametrize(
    ("sent", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\data\\x.jsonl", "x.jsonl"),
        ("/abs/ü ö.jsonl", "ü ö.jsonl"),
        ("..", "upload"),
        ("x" * 400, "x" * 255),
    ],
)
def test_a_name_is_never_a_path(client, service, sent, kept) -> None:
    assert upload(client, name=sent).json()["filename"] == kept
    assert len(blobs(service)) == 1


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", "The file has no lines."),
        (b"\n \n", "The file has no lines."),
        (LINE + b"[1]\n", "Line 2: it is no dictionary."),
        (LINE + LINE + b"{'a': 1}", "Line 3: "),
        (b'{"a": NaN}', "Line 1: NaN is no JSON."),
        (b'{"a": "\xff"}', "Line 1: byte 8 (0xff) is not UTF-8: if"),
        (LINE + b"[" * 200_000, "Line 2: it is nested too deeply."),
        (b'{"a": ' + b"1" * 5000 + b"}", "Line 1: "),
        (b'{"a": "' + b"x" * (9 << 20) + b'"}', "Line 1: it is longer than 8,388,608 bytes."),
        (b"PK\x03\x04" + bytes(100), "The file is a ZIP archive"),
    ],
)
def test_what_is_no_jsonl_is_refused(client, service, content, found) -> None:
    answer = upload(client, content)
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    expected = "Expected file to have JSONL format, where every line is a valid JSON dictionary. "
    assert message.startswith(expected + found)
    assert blobs(service) == []
    assert client.get("/v1/files").json()["data"] == []


@pytest.mark.parametrize("content", [LINE[:-1], b"\xef\xbb\xbf" + LINE, LINE + b"\r\n\n" + LINE])
def test_what_is_jsonl_is_taken(client, content) -> None:
    assert upload(client, content).status_code == 200


def test_other_purposes_take_any_bytes(client) -> None:
    made = upload(client, b"\x00\xff", purpose="user_data").json()
    assert client.get(f"/v1/files/{made['id']}/content").content == b"\x00\xff"


def test_what_is_missing_or_wrong_is_named(client, service) -> None:
    bad = upload(client, purpose="fine-tune-results").json()["error"]
    assert bad["param"] == "purpose"
    assert bad["message"] == (
        "'fine-tune-results' is not one of ['fine-tune', 'assistants', 'batch', 'user_data', "
        "'vision', 'evals'] - 'purpose'"
    )
    no_purpose = client.post("/v1/files", files={"file": ("a", LINE)})
    assert no_purpose.status_code == 400
    assert no_purpose.json()["error"]["message"] == "'purpose' is a required property"
    no_file = client.post("/v1/files", files={"purpose": (None, "fine-tune")})
    assert no_file.status_code == 400
    assert no_file.json()["error"]["message"] == "'file' is a required property"
    assert client.post("/v1/files", json={"purpose": "fine-tune"}).status_code == 400
    assert blobs(service) == []


def test_too_large_a_file_is_refused_whatever_it_says_of_its_size(client, service) -> None:
    service.site.limits.file_bytes = 1000
    for content in (b"x" * 1001, b"x" * (4 << 20)):
        answer = upload(client, content, purpose="user_data")
        assert answer.status_code == 413
        assert "at most 1,000 bytes" in answer.json()["error"]["message"]
    assert blobs(service) == []
    assert upload(client, b"x" * 1000, purpose="user_data").status_code == 200


def test_pages(client) -> None:
    made = [upload(client, name=f"{n}.jsonl").json() for n in range(5)]
    other = upload(client, purpose="user_data").json()
    ids = [file["id"] for file in made]
    page = client.get("/v1/files", params={"limit": 2}).json()
    assert (page["object"], page["has_more"]) == ("list", True)
    assert [page["first_id"], page["last_id"]] == [other["id"], ids[4]]
    found, after = [], None
    while True:
        asked = {"limit": 2, "purpose": "fine-tune", **({"after": after} if after else {})}
        page = client.get("/v1/files", params=asked).json()
        found += [file["id"] for file in page["data"]]
        if not page["has_more"]:
            break
        after = page["last_id"]
    assert found == ids[::-1]
    oldest = client.get("/v1/files", params={"order": "asc", "after": ids[3]}).json()
    assert [file["id"] for file in oldest["data"]] == [ids[4], other["id"]]
    end = client.get("/v1/files", params={"after": ids[0]}).json()
    assert end == {
        "object": "list",
        "data": [],
        "has_more": False,
        "first_id": None,
        "last_id": None,
    }
    assert client.get("/v1/files", params={"after": "file-x"}).status_code == 404
    for bad in ({"limit": 0}, {"limit": 10_001}, {"limit": "x"}, {"order": "up"}):
        assert client.get("/v1/files", params=bad).status_code == 400


def test_other_projects_files_are_not_there(client, stranger) -> None:
    made = upload(client).json()
    for method, path in (
        ("GET", f"/v1/files/{made['id']}"),
        ("GET", f"/v1/files/{made['id']}/content"),
        ("DELETE", f"/v1/files/{made['id']}"),
        ("GET", f"/v1/files?after={made['id']}"),
    ):
        answer = client.request(method, path, headers=stranger)
        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == f"No such File object: {made['id']}"
    assert client.get("/v1/files", headers=stranger).json()["data"] == []


def test_a_file_expires(client, service, monkeypatch) -> None:
    after = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    made = upload(client, **after).json()
    assert made["expires_at"] == made["created_at"] + 3600
    monkeypatch.setattr(project_files, "now", lambda: made["expires_at"])
    assert client.get(f"/v1/files/{made['id']}").status_code == 404
    assert client.get("/v1/files").json()["data"] == []
    project_files.expire(service.database, service.store)
    assert blobs(service) == []
    for bad in ({**after, "expires_after[seconds]": "60"}, {"expires_after[seconds]": "3600"}):
        assert upload(client, **bad).status_code == 400


def test_sweeping_removes_what_nobody_names(client, service, monkeypatch) -> None:
    kept = upload(client).json()
    with service.store.incoming() as content:
        content.write(b"orphan")
        service.store.keep(content)
    monkeypatch.setattr(project_files, "_GRACE_S", -60)
    project_files.sweep(service.database, service.store)
    assert len(blobs(service)) == 1
    assert client.get(f"/v1/files/{kept['id']}/content").content == LINE


def test_a_result_file_is_added_by_the_service(client, service) -> None:
    project = client.get("/v1/files")  # so that the key is known to be good
    assert project.status_code == 200
    with service.store.incoming() as content, service.database.begin() as session:
        content.write(b"step\n")
        ours = access.find_project(session, "ours").id
        made = project_files.insert(
            session, service.store, content, ours, "r.csv", project_files.RESULTS
        )
    assert client.get(f"/v1/files/{made.id}").json()["purpose"] == "fine-tune-results"
    assert client.get(f"/v1/files/{made.id}/content").content == b"step\n"


def test_a_bucket_is_never_waited_for_by_who_may_write(tmp_path, monkeypatch) -> None:
    """A bucket copies where a folder moves, for minutes: nobody else's change waits for that."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "serve.yaml").write_text("files: memory://bucket/launcher\n")
    service = Service.open(home)
    key = access.create_key(service.database, "test", "ours")
    client = TestClient(create_app(service), headers={"Authorization": f"Bearer {key}"})
    copied = []

    def copy(store, source, target, **_) -> None:
        with sqlite3.connect(home / "serve.db", timeout=0) as other:
            other.execute("BEGIN IMMEDIATE")
        other.close()
        copied.append(target)
        store.pipe_file(target, store.cat_file(source))

    monkeypatch.setattr(MemoryFileSystem, "cp_file", copy)
    made = [upload(client).json()["id"] for _ in range(2)]
    assert len(copied) == 1
    wanted = {"bytes": 9, "filename": "x", "mime_type": "x/y", "purpose": "evals"}
    begun = client.post("/v1/uploads", json=wanted).json()["id"]
    part = client.post(f"/v1/uploads/{begun}/parts", files={"data": b"nine byte"}).json()["id"]
    done = client.post(f"/v1/uploads/{begun}/complete", json={"part_ids": [part]}).json()
    assert client.get(f"/v1/files/{done['file']['id']}/content").content == b"nine byte"
    client.delete(f"/v1/files/{made[0]}")
    assert client.get(f"/v1/files/{made[1]}/content").content == LINE
    client.delete(f"/v1/files/{made[1]}")
    assert len(blobs(service)) == 1
    assert not MemoryFileSystem().find("/bucket/launcher/incoming")
    service.database.engine.dispose()


def test_content_that_goes_while_it_is_prepared_is_kept_all_the_same(tmp_path) -> None:
    store = Store("memory://bucket/race")
    with store.incoming() as content:
        content.write(LINE)
        store.prepare(content)
        store.delete(content.sha256)  # its last file was deleted just now
        store.keep(content)
    with store.open(content.sha256) as opened:
        assert opened.read() == LINE
