"""Files in parts: order, sizes, checksums, ends, and what becomes of the parts."""

from __future__ import annotations

import hashlib

import pytest
from starlette.testclient import TestClient

from launcher.serve.files import project_files, uploads
from launcher.serve.service import Service

CONTENT = b'{"a": 1}\n' * 100


def begin(client: TestClient, size: int = len(CONTENT), **more):
    body = {
        "bytes": size,
        "filename": "../data.jsonl",
        "mime_type": "application/jsonl",
        "purpose": "fine-tune",
        **more,
    }
    return client.post("/v1/uploads", json=body)


def add(client: TestClient, upload: str, content: bytes):
    return client.post(f"/v1/uploads/{upload}/parts", files={"data": ("blob", content)})


def complete(client: TestClient, upload: str, *parts: str, **more):
    return client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": parts, **more})


@pytest.fixture
def upload(client: TestClient) -> str:
    return str(begin(client).json()["id"])


def halves(client: TestClient, upload: str) -> list[str]:
    """Ids of two parts, the second half sent first."""
    made = [add(client, upload, half).json()["id"] for half in (CONTENT[450:], CONTENT[:450])]
    return made[::-1]


def blobs(service: Service) -> list[str]:
    return service.store.hashes(older_than_s=-60)


def test_parts_become_a_file_in_the_order_asked_for(client, service) -> None:
    begun = begin(client, expires_after={"anchor": "created_at", "seconds": 7200}).json()
    assert begun["status"] == "pending"
    assert begun["expires_at"] == begun["created_at"] + 3600
    assert (begun["filename"], begun["file"]) == ("data.jsonl", None)
    part = add(client, begun["id"], CONTENT[450:]).json()
    assert part == {**part, "object": "upload.part", "upload_id": begun["id"]}
    parts = [add(client, begun["id"], CONTENT[:450]).json()["id"], part["id"]]
    md5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
    done = complete(client, begun["id"], *parts, md5=md5).json()
    assert (done["object"], done["status"]) == ("upload", "completed")
    file = done["file"]
    assert file["expires_at"] == file["created_at"] + 7200
    assert client.get(f"/v1/files/{file['id']}").json() == file
    assert client.get(f"/v1/files/{file['id']}/content").content == CONTENT
    assert blobs(service) == [hashlib.sha256(CONTENT).hexdigest()], "the parts are gone"
    again = complete(client, begun["id"], *parts, md5=md5)
    assert again.json() == done, "the answer may have been lost"
    assert len(client.get("/v1/files").json()["data"]) == 1


def test_what_does_not_fit_changes_nothing(client, service, upload) -> None:
    first, second = halves(client, upload)
    for parts, more in (
        ([first], {}),
        ([first, first], {}),
        ([first, "part_x"], {}),
        ([], {}),
        ([first, second], {"md5": "0" * 32}),
    ):
        answer = complete(client, upload, *parts, **more)
        assert answer.status_code == 400, (parts, more)
    assert client.get("/v1/files").json()["data"] == []
    swapped = complete(client, upload, second, first)
    assert swapped.status_code == 200, "lines of nine bytes, cut between two"
    assert blobs(service)


def test_what_is_no_jsonl_is_refused_at_the_end(client) -> None:
    upload = begin(client, size=3).json()["id"]
    part = add(client, upload, b"{]}").json()["id"]
    answer = complete(client, upload, part)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("Expected file to have JSONL format")


def test_an_upload_ends_once(client, service, upload) -> None:
    parts = halves(client, upload)
    cancelled = client.post(f"/v1/uploads/{upload}/cancel")
    assert cancelled.json()["status"] == "cancelled"
    assert blobs(service) == []
    assert client.post(f"/v1/uploads/{upload}/cancel").json() == cancelled.json()
    for answer in (add(client, upload, b"x"), complete(client, upload, *parts)):
        assert answer.status_code == 400
        assert "has status 'cancelled'" in answer.json()["error"]["message"]


def test_an_upload_expires(client, service, upload, monkeypatch) -> None:
    parts = halves(client, upload)
    in_an_hour = uploads.now() + 3601
    monkeypatch.setattr(uploads, "now", lambda: in_an_hour)
    monkeypatch.setattr(project_files, "now", lambda: in_an_hour)
    assert "has status 'expired'" in complete(client, upload, *parts).json()["error"]["message"]
    project_files.expire(service.database, service.store)
    assert blobs(service) == []
    assert "has status 'expired'" in add(client, upload, b"x").json()["error"]["message"]


@pytest.mark.parametrize(
    ("more", "status"),
    [
        ({"purpose": "fine-tune-results"}, 400),
        ({"bytes": 0}, 400),
        ({"bytes": 10**18}, 400),
        ({"bytes": "many"}, 400),
        ({"bytes": None}, 400),
        ({"filename": ""}, 400),
        ({"mime_type": 1}, 400),
        ({"expires_after": {"anchor": "created_at", "seconds": 1}}, 400),
        ({"unknown": 1}, 400),
    ],
)
def test_what_is_asked_for_is_checked(client, more, status) -> None:
    assert begin(client, **more).status_code == status


def test_parts_have_limits(client, service, upload) -> None:
    service.site.limits.part_bytes = 1000
    assert add(client, upload, b"x" * 1001).status_code == 413
    added = [add(client, upload, b"x" * 1000).status_code for _ in range(4)]
    assert added == [200, 200, 400, 400], "twice the upload, and a part"


def test_other_projects_uploads_are_not_there(client, upload, stranger) -> None:
    answers = [
        client.post(f"/v1/uploads/{upload}/cancel", headers=stranger),
        client.post(f"/v1/uploads/{upload}/parts", files={"data": b"x"}, headers=stranger),
        client.post(f"/v1/uploads/{upload}/complete", json={"part_ids": ["x"]}, headers=stranger),
    ]
    for answer in answers:
        assert answer.status_code == 404
        assert answer.json()["error"]["message"] == f"No such Upload object: {upload}"
