"""A server that is watched: hung, lost, without its keeper, and with adapters of all kinds."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from launcher.core import processes
from launcher.core.errors import ConfigError
from launcher.inference.requests import Refused
from launcher.inference.vllm import server as module
from launcher.inference.vllm.server import WatchedServer
from launcher.vllm import places
from launcher.vllm.connection import GoneError, ServerConnection, Withdrawal
from launcher.vllm.places import ServerOrder, ServerRecord, ServerState
from support.slurm import wait_for

TOO_WIDE = "LoRA rank 64 is greater than max_lora_rank 16."


class Behind:
    """What a server says; `hangs` are paths that it does not answer until it is let go."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []
        self.hangs: set[str] = set()
        self.models = ["base"]
        self.load: tuple[int, str] = (200, "loaded")
        self.end = threading.Event()
        behind = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.answer(None)

            def do_POST(self) -> None:
                self.answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

            def answer(self, body: Any) -> None:
                behind.asked.append((self.path, body))
                if self.path in behind.hangs:
                    behind.end.wait(60)
                    return
                status, said = 200, "{}"
                if self.path == "/v1/load_lora_adapter":
                    status, said = behind.load
                if self.path == "/v1/models":
                    said = json.dumps({"data": [{"id": name} for name in behind.models]})
                self.send_response(status)
                self.end_headers()
                self.wfile.write(said.encode())

            def log_message(self, format: str, *args: object) -> None:
                """Nobody reads it."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def close(self) -> None:
        self.end.set()
        self.http.shutdown()
        self.http.server_close()

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]


@pytest.fixture
def behind() -> Iterator[Behind]:
    found = Behind()
    yield found
    found.close()


def order(start_s: float = 60) -> ServerOrder:
    return ServerOrder(
        command=("false",),
        environment={},
        token="of the order",
        scratch="none",
        gpus=(),
        is_reached_from_afar=False,
        start_s=start_s,
        max_restarts=1,
    )


@pytest.fixture
def watched(behind: Behind, tmp_path: Path) -> WatchedServer:
    found = WatchedServer(tmp_path, order(), answer_s=100)
    found._ready = ServerRecord(
        state=ServerState.ready, start="one", is_first=True, url=behind.url, pid=1
    )
    return found


def test_a_server_whose_engine_hangs_is_started_again(
    watched: WatchedServer, behind: Behind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says that it is well, and draws no token."""
    monkeypatch.setattr(module, "_PROBE_S", 0.5)
    watched.lost("one")
    assert watched.is_ready
    assert behind.paths() == ["/health", "/v1/completions"]
    assert behind.asked[-1][1]["max_tokens"] == 1
    behind.hangs = {"/v1/completions"}
    watched.heard()
    watched.lost("one")
    assert watched.is_ready, "others have answers from it"
    monkeypatch.setattr(watched, "_heard_at", time.monotonic() - 40)
    watched.lost("one")
    assert not watched.is_ready
    assert places.is_stuck(tmp_path, 0, "one")
    asked = len(behind.asked)
    watched.lost("one")
    assert len(behind.asked) == asked, "it is asked once"


def test_a_request_that_is_withdrawn_is_not_waited_for(behind: Behind) -> None:
    behind.hangs = {"/v1/completions"}
    withdrawal = Withdrawal()
    stream = ServerConnection(behind.url, "", 600).stream("/v1/completions", {}, withdrawal)
    raised: list[Exception] = []

    def read() -> None:
        try:
            next(stream)
        except GoneError as error:
            raised.append(error)

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    wait_for(lambda: bool(behind.asked), "the request", 30)
    assert reading.is_alive()
    withdrawal.make()
    reading.join(30)
    assert len(raised) == 1
    with pytest.raises(GoneError):
        next(ServerConnection(behind.url, "", 600).stream("/v1/completions", {}, withdrawal))


def test_who_is_gone_does_not_wait_for_a_server(watched: WatchedServer) -> None:
    watched._ready = None
    with pytest.raises(GoneError, match="nobody waits"):
        watched.reach(lambda: True)


@pytest.mark.parametrize(
    ("load", "models", "kind"),
    [
        ((400, "has already been loaded"), ["base", "own"], None),
        ((500, "EngineDeadError"), ["base", "own"], None),
        ((500, TOO_WIDE), ["base"], Refused),
        ((500, "out of memory"), ["base"], GoneError),
        ((404, "No adapter found"), ["base"], GoneError),
    ],
)
def test_an_adapter_is_refused_for_what_vllm_says_of_it_alone(
    watched: WatchedServer,
    behind: Behind,
    load: tuple[int, str],
    models: list[str],
    kind: type[Exception] | None,
) -> None:
    behind.load, behind.models = load, models
    start, connection = watched.reach(lambda: False)

    def take() -> None:
        watched.take_adapter(start, connection, "own", Path("own"))

    if kind is None:
        take()
        return
    with pytest.raises(kind) as raised:
        take()
    assert type(raised.value) is not Refused or raised.value.code == "model_not_supported"
    behind.load = 200, "loaded"
    take()


def test_to_drop_an_adapter_holds_nobody_up(
    watched: WatchedServer, behind: Behind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HEALTH_S", 0.5)
    start, connection = watched.reach(lambda: False)
    watched.take_adapter(start, connection, "own", Path("own"))
    behind.hangs = {"/v1/unload_lora_adapter"}
    lock = watched._lock_of("own")
    with lock:
        watched.drop_adapter("own", Path("own"))  # returns, though its thread has to wait
    wait_for(lambda: "/v1/unload_lora_adapter" in behind.paths(), "the word", 30)
    watched.take_adapter(start, connection, "own", Path("own"))
    assert behind.paths().count("/v1/load_lora_adapter") == 2


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Callable[..., WatchedServer]]:
    """Watched servers whose keepers only wait."""
    found: list[WatchedServer] = []

    def make(**options: Any) -> WatchedServer:
        own = WatchedServer(tmp_path, order(**options), answer_s=100)

        def begin() -> None:
            wait = [sys.executable, "-c", "import time; time.sleep(600)"]
            own._keeper = processes.start(wait, tmp_path / "keeper.log", {})
            own._beat = (0, time.monotonic())

        own._begin = begin  # type: ignore[method-assign]
        own.start()
        found.append(own)
        return own

    yield make
    for own in found:
        own.close()


def test_a_keeper_that_is_stuck_is_ended_and_another_started(
    kept: Callable[..., WatchedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = kept()
    first = watched._keeper
    assert first is not None
    watched.watch()
    assert first.poll() is None
    watched._beat = (0, time.monotonic() - 61)
    watched.watch()
    assert first.poll() == -signal.SIGKILL
    watched.watch()
    assert watched._keeper is not first
    assert watched._keeper is not None
    watched._beat = (0, time.monotonic() - 61)
    watched.watch()
    with pytest.raises(ConfigError, match="killed 2 times"):
        watched.watch()


def test_a_server_without_its_keepers_words_lives_on_while_it_is_well(
    kept: Callable[..., WatchedServer], behind: Behind, tmp_path: Path
) -> None:
    watched = kept()
    record = ServerRecord(
        state=ServerState.ready, start="one", is_first=True, url=behind.url, pid=1, beat=7
    )
    places.note(tmp_path, 0, record)
    watched.watch()
    watched._beat = (7, time.monotonic() - 61)
    watched.watch()
    assert watched.is_ready
    assert watched._keeper is not None
    assert watched._keeper.poll() is None


def test_a_server_that_never_comes_is_given_up(kept: Callable[..., WatchedServer]) -> None:
    watched = kept(start_s=10)
    watched._since = time.monotonic() - 79
    watched.watch()
    watched._since = time.monotonic() - 81
    with pytest.raises(ConfigError, match="has not been there for 81 s"):
        watched.watch()
