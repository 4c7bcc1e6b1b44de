"""A keeper and servers that only listen: who is shown the token, and what a killed one leaves."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from launcher import entry
from launcher.core import processes, runtime
from launcher.vllm import keeper, places
from launcher.vllm.connection import RefusedError, ServerConnection
from launcher.vllm.places import ServerOrder, ServerRecord, ServerState
from support.slurm import wait_for

#: A server behind the door that is deaf to SIGTERM, with a process of its own.
DEAF = """
import signal, subprocess, sys, uvicorn
from launcher_door import Door

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

class Server(uvicorn.Server):
    def capture_signals(self):
        import contextlib
        return contextlib.nullcontext()

signal.signal(signal.SIGTERM, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
words = dict(zip(sys.argv[1::2], sys.argv[2::2]))
where = {"uds": words["--uds"]} if "--uds" in words else {
    "host": words["--host"], "port": int(words["--port"])
}
Server(uvicorn.Config(Door(app), lifespan="off", log_level="warning", **where)).run()
"""


def order(folder: Path, *, afar: bool = False) -> ServerOrder:
    return ServerOrder(
        command=(sys.executable, "-c", DEAF),
        environment={},
        token="of the order",
        scratch=str(folder / "scratch"),
        gpus=(),
        is_reached_from_afar=afar,
        start_s=60,
        max_restarts=3,
    )


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Keepers, each of which is ended."""
    found: list[subprocess.Popen[bytes]] = []
    yield found
    places.withdraw_order(tmp_path)
    for one in found:
        if one.poll() is None:
            one.wait(40)


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = entry.command("launcher.vllm.keeper", str(folder), "0")
    return processes.start(command, folder / "keeper.log", runtime.environment_without_ranks())


def ready(folder: Path, before: str = "") -> ServerRecord:
    def there() -> bool:
        found = places.read(folder, 0)
        return found is not None and found.state is ServerState.ready and found.start != before

    wait_for(there, "a server", 60)
    found = places.read(folder, 0)
    assert found is not None
    return found


@pytest.mark.timeout(180)
def test_a_deaf_server_of_a_keeper_that_is_killed_ends_before_the_next(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    places.give_order(tmp_path, order(tmp_path))
    started.append(start(tmp_path))
    first = ready(tmp_path)
    door = Path(first.url.removeprefix("unix:")).parent
    assert door.stat().st_mode & 0o077 == 0
    (child,) = processes.children(first.pid)
    started[0].kill()
    started[0].wait()
    assert processes.start_tick(first.pid), "it is deaf to what it is told then"
    started.append(start(tmp_path))
    second = ready(tmp_path, first.start)
    assert not processes.alive(first.pid, time.time())
    assert not processes.alive(child, time.time())
    assert not door.exists()
    token = places.token_of("of the order", second.start)
    ServerConnection(second.url, token, 10).get("/health")
    with pytest.raises(RefusedError, match="401"):
        ServerConnection(second.url, places.token_of("of the order", first.start), 10).get("/")
    places.withdraw_order(tmp_path)
    assert started[1].wait(40) == 0
    assert not Path(second.url.removeprefix("unix:")).parent.exists()
    assert not processes.alive(second.pid, time.time())


class Listening(BaseHTTPRequestHandler):
    """Another user's server, which says that all is well."""

    seen: list[str]

    def do_GET(self) -> None:
        self.seen.append(f"{self.headers}")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"0" * 64)

    def log_message(self, format: str, *args: object) -> None:
        """Nobody reads it."""


def test_who_has_a_port_before_the_server_is_not_shown_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    handler = type("Own", (Listening,), {"seen": seen})
    other = ThreadingHTTPServer((socket.gethostname(), 0), handler)
    threading.Thread(target=other.serve_forever, daemon=True).start()
    monkeypatch.setattr(keeper, "_open_port", lambda host: other.server_port)
    try:
        own = keeper.Keeper(tmp_path, 0, 0)
        wanted = order(tmp_path, afar=True)
        assert own._listens(wanted)[-1] == f"{other.server_port}"
        assert not own._is_healthy(wanted)
    finally:
        other.shutdown()
        other.server_close()
    assert len(seen) == 1
    assert "authorization" not in seen[0].lower()


@pytest.mark.timeout(120)
def test_a_server_that_others_ask_from_afar_proves_itself_first(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    places.give_order(tmp_path, order(tmp_path, afar=True))
    started.append(start(tmp_path))
    found = ready(tmp_path)
    assert found.url.startswith(f"http://{socket.gethostname()}:")
    token = places.token_of("of the order", found.start)
    ServerConnection(found.url, token, 10).get("/health")
    os.kill(started[0].pid, signal.SIGTERM)
    assert started[0].wait(40) == 0


def test_the_path_of_a_socket_is_short_whatever_the_folder_of_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr(keeper.tempfile, "gettempdir", lambda: str(deep))
    door = keeper._new_door()
    try:
        with socket.socket(socket.AF_UNIX) as own:
            own.bind(str(door / "server"))
    finally:
        (door / "server").unlink()
        door.rmdir()
