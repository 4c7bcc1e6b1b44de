"""A server of a module's tests, and an app in this process for quick ones."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from launcher.serve.app import create_app
from launcher.serve.http import access
from launcher.serve.service import Service
from support.served import Served
from support.served import served as _served


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`launcher serve` with a demo key, for all tests of a module; mark them slow."""
    with _served(tmp_path_factory.mktemp("served") / "home") as found:
        yield found


@pytest.fixture(scope="session")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a service in which nothing has happened yet; to be copied."""
    home = tmp_path_factory.mktemp("empty") / "home"
    Service.open(home).database.engine.dispose()
    return home


@pytest.fixture
def service(empty_home: Path, tmp_path: Path) -> Iterator[Service]:
    """A service without a server."""
    shutil.copytree(empty_home, tmp_path / "home", dirs_exist_ok=True)
    found = Service.open(tmp_path / "home")
    yield found
    found.database.engine.dispose()


@pytest.fixture
def client(service: Service) -> Iterator[TestClient]:
    """Its app, asked with a key of the project `ours`."""
    key = access.create_key(service.database, "test", "ours")
    headers = {"Authorization": f"Bearer {key}"}
    with TestClient(create_app(service), headers=headers, raise_server_exceptions=False) as found:
        yield found


@pytest.fixture
def stranger(client: TestClient, service: Service) -> dict[str, str]:
    """Headers with a key of another project."""
    key = access.create_key(service.database, "test", "theirs")
    return {"Authorization": f"Bearer {key}"}
