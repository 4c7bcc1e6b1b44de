"""The database: its revisions, and the same behaviour on SQLite and PostgreSQL."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import text
from starlette.testclient import TestClient

from launcher.core.errors import ConfigError, StorageError
from launcher.serve import site
from launcher.serve.app import create_app
from launcher.serve.db import upgrade
from launcher.serve.db.database import Database
from launcher.serve.db.tables import Base
from launcher.serve.files import project_files
from launcher.serve.http import access
from launcher.serve.service import DATABASE, Service
from support.postgres import SKIP, postgres
from support.served import wait_until

LINE = b'{"messages": []}\n'


@pytest.fixture(scope="module", params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest) -> Iterator[str | None]:
    """Of PostgreSQL's server; None for SQLite."""
    if request.param == "sqlite":
        yield None
        return
    with postgres() as found:
        if found is None:
            pytest.skip(SKIP)
        yield found


@pytest.fixture
def opened(url: str | None, tmp_path: Path) -> Iterator[Callable[[], Service]]:
    """Opens the service of one folder, again and again, on an empty database."""
    home = tmp_path / "home"
    home.mkdir()
    if url is not None:
        engine = Database(url).engine
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA public CASCADE"))
            connection.execute(text("CREATE SCHEMA public"))
        engine.dispose()
        (home / site.FILE).write_text(f"database: {url}\n")
    services: list[Service] = []

    def make() -> Service:
        services.append(Service.open(home))
        return services[-1]

    yield make
    for service in services:
        service.database.engine.dispose()


@pytest.fixture
def client_of() -> Iterator[Callable[..., TestClient]]:
    """Makes a client of a service, with a key of a project."""
    with contextlib.ExitStack() as stack:

        def make(service: Service, project: str = "ours") -> TestClient:
            key = access.create_key(service.database, "test", project)
            headers = {"Authorization": f"Bearer {key}"}
            return stack.enter_context(TestClient(create_app(service), headers=headers))

        yield make


def upload(client: TestClient, content: bytes = LINE) -> str:
    sent = {"file": ("a.jsonl", content)}
    return client.post("/v1/files", files=sent, data={"purpose": "fine-tune"}).json()["id"]


def at_once(count: int, do: Callable[[int], object]) -> list[object]:
    """What `count` threads return that start together; an exception counts too."""
    gate = threading.Barrier(count)
    got: list[object] = [None] * count

    def one(number: int) -> None:
        gate.wait()
        try:
            got[number] = do(number)
        except Exception as error:
            got[number] = error

    threads = [threading.Thread(target=one, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    return got


def test_the_revisions_make_the_tables(opened: Callable[[], Service]) -> None:
    with opened().database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_a_database_of_the_first_version_is_brought_to_this_one(opened, client_of) -> None:
    service = opened()
    file = upload(client_of(service))
    with service.database.begin() as session:
        session.execute(text("ALTER TABLE jobs DROP COLUMN estimated_finish"))
        session.execute(text("ALTER TABLE projects DROP COLUMN began_at"))
        session.execute(text("ALTER TABLE keys DROP COLUMN is_admin"))
        for table in (
            *("answered", "deliveries", "webhook_endpoints", "permissions", "batches"),
            *("eval_items", "eval_runs", "evals"),
        ):
            session.execute(text(f"DROP TABLE {table}"))
        session.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    again = client_of(opened())
    assert again.get(f"/v1/files/{file}").status_code == 200
    asked = {"model": "tiny", "training_file": file}
    assert again.post("/v1/fine_tuning/jobs", json=asked).json()["estimated_finish"] is None


def test_servers_that_start_together_make_the_tables_once(opened, client_of) -> None:
    found = at_once(4, lambda _: opened())
    assert all(isinstance(service, Service) for service in found), found
    assert upload(client_of(opened()))


def test_a_newer_database_is_refused(opened) -> None:
    service = opened()
    with service.database.begin() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(ConfigError, match="is of a newer version") as refused:
        opened()
    assert "HINT: install the launcher that made it" in str(refused.value)


def test_what_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match="cannot be used"):
        Service.open(tmp_path)
    for url in ("mysql://x/y", "nonsense", "postgresql+psycopg://x@/y?host=/nowhere"):
        (tmp_path / site.FILE).write_text(f"database: {url}\n")
        with pytest.raises(ConfigError, match="database"):
            Service.open(tmp_path)


def test_the_folder_is_for_its_owner_alone(tmp_path: Path) -> None:
    Service.open(tmp_path / "home").database.engine.dispose()
    assert (tmp_path / "home").stat().st_mode & 0o777 == 0o700
    (tmp_path / "file").touch()
    for home in (tmp_path / "file", tmp_path / "file" / "home"):
        with pytest.raises(StorageError, match="cannot be made"):
            Service.open(home)


def test_what_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "runs").mkdir(parents=True)
    (home / "serve.yaml").write_text("organization: acme\n")
    for path in (home, home / "runs", home / "serve.yaml"):
        path.chmod(0o777)
    Service.open(home).database.engine.dispose()
    assert not [path for path in [home, *home.iterdir()] if path.stat().st_mode & 0o077]


def test_a_folder_of_more_than_the_service_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    tmp_path.chmod(0o755)
    Service.open(tmp_path).database.engine.dispose()
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert (tmp_path / DATABASE).stat().st_mode & 0o077 == 0
    assert (tmp_path / "files").stat().st_mode & 0o077 == 0


def test_a_locked_database_is_told_of_within_seconds(tmp_path: Path, client_of) -> None:
    service = Service.open(tmp_path / "home")
    client = client_of(service)
    held = sqlite3.connect(tmp_path / "home" / DATABASE, isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    asked = {"bytes": 8, "filename": "x", "mime_type": "x/y", "purpose": "evals"}
    answer = client.post("/v1/uploads", json=asked)
    assert (answer.status_code, time.monotonic() - began < 12) == (503, True)
    assert client.get("/v1/files").status_code == 200
    held.execute("ROLLBACK")
    held.close()
    time.sleep(2.1)
    assert client.post("/v1/uploads", json=asked).status_code == 200
    service.database.engine.dispose()


def test_sqlite_waits_for_no_reader(tmp_path: Path) -> None:
    service = Service.open(tmp_path)
    with sqlite3.connect(tmp_path / DATABASE) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    with service.database.read() as reader:
        reader.execute(text("SELECT * FROM projects"))
        access.create_key(service.database, "test", "ours")
    service.database.engine.dispose()


def test_the_whole_way_of_a_file(opened, client_of) -> None:
    service = opened()
    client = client_of(service)
    made = [upload(client) for _ in range(3)]
    assert [file["id"] for file in client.get("/v1/files?limit=2").json()["data"]] == made[:0:-1]
    assert client_of(service, "theirs").get(f"/v1/files/{made[0]}").status_code == 404
    begun = client.post(
        "/v1/uploads",
        json={"bytes": 8, "filename": "x", "mime_type": "x/y", "purpose": "evals"},
    ).json()["id"]
    part = client.post(f"/v1/uploads/{begun}/parts", files={"data": b"12345678"}).json()["id"]
    done = client.post(f"/v1/uploads/{begun}/complete", json={"part_ids": [part]}).json()
    assert done["file"]["bytes"] == 8
    for name in (*made, done["file"]["id"]):
        assert client.delete(f"/v1/files/{name}").status_code == 200
    assert service.store.hashes(-60) == []
    assert client.get("/metrics").status_code == client.get("/healthz").status_code == 200
    assert client.get("/readyz").json()["database"] == "ok"


def test_the_whole_way_of_a_batch(opened, client_of) -> None:
    client = client_of(opened())
    line = {"custom_id": "a", "method": "POST", "url": "/v1/responses", "body": {"model": "none"}}
    sent = {"file": ("a.jsonl", json.dumps(line).encode())}
    file = client.post("/v1/files", files=sent, data={"purpose": "batch"}).json()["id"]
    asked = {"input_file_id": file, "endpoint": line["url"], "completion_window": "24h"}
    made = client.post("/v1/batches", json=asked).json()["id"]
    path = f"/v1/batches/{made}"
    wait_until(lambda: client.get(path).json()["status"] == "completed", "its end")
    assert client.get(path).json()["request_counts"]["failed"] == 1
    assert [one["id"] for one in client.get("/v1/batches").json()["data"]] == [made]
    assert client.post(f"{path}/cancel").status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/files/%00", None),
        ("GET", "/v1/files?after=%00&limit=1", None),
        ("GET", "/v1/files?purpose=%C3%28", None),
        ("POST", "/v1/uploads", {"filename": "\0"}),
        ("POST", "/v1/uploads", {"bytes": 2**63, "filename": "x"}),
        ("POST", "/v1/uploads/\U0001f600/cancel", None),
        ("DELETE", "/v1/files/" + "9" * 4000, None),
        ("DELETE", "/v1/" + "%00" * 10, None),
    ],
)
def test_odd_values_are_no_defect(opened, client_of, method, path, body) -> None:
    answer = client_of(opened()).request(method, path, json=body)
    assert 200 <= answer.status_code < 500, answer.text


@pytest.mark.thorough
def test_the_same_content_comes_and_goes_at_once(opened, client_of) -> None:
    """Content that is let go while the same comes in is there for the newcomer."""
    first, second = opened(), opened()
    clients = [client_of(service) for service in (first, second)]

    def churn(number: int) -> list[bool]:
        client, seen = clients[number % 2], []
        for _ in range(8):
            made = upload(client)
            seen.append(client.get(f"/v1/files/{made}/content").content == LINE)
            client.delete(f"/v1/files/{made}")
        return seen

    assert at_once(4, churn) == [[True] * 8] * 4
    assert first.store.hashes(-60) == []


def test_a_file_is_deleted_and_an_upload_completed_once(opened, client_of) -> None:
    first, second = opened(), opened()
    clients = [client_of(service) for service in (first, second)]
    made = upload(clients[0])
    gone = at_once(4, lambda n: clients[n % 2].delete(f"/v1/files/{made}").status_code)
    assert sorted(gone) == [200, 404, 404, 404]
    body = {"bytes": 3, "filename": "x", "mime_type": "x/y", "purpose": "evals"}
    begun = clients[0].post("/v1/uploads", json=body).json()["id"]
    part = clients[0].post(f"/v1/uploads/{begun}/parts", files={"data": b"123"}).json()["id"]
    wanted = {"part_ids": [part]}
    ended = at_once(
        4, lambda n: clients[n % 2].post(f"/v1/uploads/{begun}/complete", json=wanted).status_code
    )
    assert set(ended) <= {200, 400}
    assert 200 in ended
    with first.database.read() as session:
        assert (
            len(
                project_files.page(
                    session,
                    access.find_project(session, "ours").id,
                    after=None,
                    limit=9,
                    newest_first=True,
                    purpose=None,
                )[0]
            )
            == 1
        )
    upgrade.upgrade(first.database)


def test_a_run_of_an_eval_is_done_once_by_several_servers(opened, client_of) -> None:
    clients = [client_of(opened()) for _ in range(2)]
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    criterion = {"type": "string_check", "name": "same", "operation": "eq"}
    criterion |= {"input": "{{ item.a }}", "reference": "x"}
    config = {"type": "custom", "item_schema": schema}
    asked = {"data_source_config": config, "testing_criteria": [criterion]}
    made = clients[0].post("/v1/evals", json=asked).json()["id"]
    lines = [{"item": {"a": "x" if number % 3 else "y"}} for number in range(12)]
    source = {"type": "jsonl", "source": {"type": "file_content", "content": lines}}
    path, again = f"/v1/evals/{made}/runs", {"Idempotency-Key": "k"}

    def begin(number: int) -> str:
        own = {"headers": again} if number < 2 else {}
        return clients[number % 2].post(path, json={"data_source": source}, **own).json()["id"]

    begun = at_once(4, begin)
    assert len(set(begun)) == 3  # two were the same request
    for run in set(begun):
        one = f"{path}/{run}"
        wait_until(lambda one=one: clients[0].get(one).json()["status"] == "completed", "its end")
        counts = clients[1].get(one).json()["result_counts"]
        assert counts == {"total": 12, "passed": 8, "failed": 4, "errored": 0}
        places = [
            item["datasource_item_id"]
            for item in clients[1].get(f"{one}/output_items").json()["data"]
        ]
        assert places == list(range(12))
    by_change = clients[0].get("/v1/evals?order_by=updated_at&order=desc").json()["data"]
    assert [one["id"] for one in by_change] == [made]
    assert clients[1].get(f"/v1/evals?after={made}&order_by=updated_at").json()["data"] == []
    assert clients[0].delete(f"/v1/evals/{made}").json()["deleted"]
