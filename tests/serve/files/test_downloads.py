"""Archives of folders, and the links by which what a job leaves is taken away."""

from __future__ import annotations

import io
import tarfile
import time
from pathlib import Path

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from launcher.core.rundir import RunDir
from launcher.serve.app import create_app
from launcher.serve.db.tables import Job, JobState, Key, Model, Project
from launcher.serve.files import downloads
from launcher.serve.http import access, links

SECRET = b"0" * 32


@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 300_000])
def test_an_archive_is_as_long_as_was_said_and_holds_what_the_folder_does(
    size: int, tmp_path: Path
) -> None:
    files = {"a.bin": b"x" * size, "größe.json": b"{}", f"{'deep/' * 30}long-{'n' * 120}": b"y"}
    for name, content in files.items():
        path = tmp_path / "export" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "secret").write_text("no")
    (tmp_path / "export" / "link").symlink_to(tmp_path / "secret")
    raw = b"".join(downloads.archive(tmp_path / "export", "ft-α"))
    assert len(raw) == downloads.archive_bytes(tmp_path / "export", "ft-α")
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        found = {one.name: archive.extractfile(one).read() for one in archive}  # type: ignore[union-attr]
    assert found == {f"ft-α/{name}": content for name, content in files.items()}


def test_a_link_is_good_for_its_words_and_its_time() -> None:
    good = links.signed(("download", "a"), int(time.time()) + 60, SECRET)
    assert links.read(good, SECRET, 2) == ["download", "a"]
    assert links.read(good, b"1" * 32, 2) is None
    assert links.read(good, SECRET, 3) is None
    assert (
        links.read(links.signed(("download", "a"), int(time.time()) - 1, SECRET), SECRET, 2) is None
    )
    for broken in ("", ".", "a.b", good[:-2], good.replace(".", ""), f"{good}é"):
        assert links.read(broken, SECRET, 2) is None


@pytest.fixture
def job(service) -> Job:
    """A job with a model."""
    access.create_key(service.database, "first", "ours")
    with service.database.begin() as session:
        owner = session.scalars(select(Project)).one()
        name = "ft:tiny:local::abc"
        about = {"model": "tiny", "training_file": "file-gone", "seed": 1}
        found = Job(
            id="ftjob-1",
            project_id=owner.id,
            state=JobState.succeeded,
            fine_tuned_model=name,
            **about,
        )
        session.add(found)
        session.flush()
        model = {"step": 3, "checkpoint_id": "c", "is_final": True}
        session.add(Model(name=name, project_id=owner.id, job_id=found.id, **model))
    export = RunDir(service.runs / found.id).export
    export.mkdir(parents=True)
    (export / "config.json").write_text("{}")
    return found


def test_a_link_ends_with_its_key_and_with_the_model(client: TestClient, service, job: Job) -> None:
    path = f"/v1/fine_tuning/jobs/{job.id}/downloads"
    [model] = client.get(path).json()["data"]
    assert model["filename"] == "ft-tiny-local--abc.tar"
    link = f"/{model['url']}"
    got = client.get(link, headers={"Authorization": ""})
    assert (got.status_code, len(got.content)) == (200, model["bytes"])
    assert got.headers["cache-control"] == "no-store"
    assert client.get(link.replace("downloads", "reports")).status_code == 404
    with service.database.begin() as session:
        key = session.scalars(select(Key).where(Key.name == "test")).one()
        key.revoked_at = 1
    assert client.get(link).status_code == 404
    other = access.create_key(service.database, "second", "ours")
    headers = {"Authorization": f"Bearer {other}"}
    link = "/" + client.get(path, headers=headers).json()["data"][0]["url"]
    assert client.get(link).status_code == 200
    assert client.delete(f"/v1/models/{job.fine_tuned_model}", headers=headers).status_code == 200
    assert client.get(path, headers=headers).json()["data"] == []
    assert client.get(link).status_code == 404


def test_the_demo_keys_links_are_for_this_host_only(service, job: Job) -> None:
    with service.database.begin() as session:
        session.scalars(select(Project)).one().name = "demo"
    headers = {"Authorization": "Bearer sk-demo"}
    with TestClient(create_app(service, "sk-demo"), base_url="http://localhost") as client:
        path = f"/v1/fine_tuning/jobs/{job.id}/downloads"
        link = "/" + client.get(path, headers=headers).json()["data"][0]["url"]
        assert client.get(link).status_code == 200
        assert client.get(link, headers={"Host": "evil.example"}).status_code == 404
