"""URLs: fetched whole or not at all, from a server that may fail in the middle."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from launcher import fingerprint
from launcher.config.schema import Config
from launcher.core.errors import ConfigError, DataError
from launcher.data.cache import TokenCache
from launcher.data.prepare.preparation import fetch, prepare
from launcher.data.sources import remote
from launcher.fingerprint import RemoteData, RemoteFile
from support.chats import chat

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

Configure = Callable[..., Config]
LINES = "".join(json.dumps(chat(f"what is {i}?", "it")) + "\n" for i in range(2000)).encode()


class Server(ThreadingHTTPServer):
    """Serves LINES in ranges; `broken` says how many more transfers end early."""

    broken = 0
    gone = False
    ranges = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/train.jsonl"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        if self.server.gone:
            self.send_error(404)
            return
        asked = self.headers.get("Range") if self.server.ranges else None
        self.server.asked.append(asked or self.command)
        begin, end = 0, len(LINES)
        if asked:
            first, last = asked.removeprefix("bytes=").split("-")
            begin, end = int(first), min(int(last) + 1, len(LINES)) if last else len(LINES)
        body = LINES[begin:end]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(body)))
        if self.server.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{len(LINES)}")
        self.end_headers()
        if with_body:
            if self.server.broken and begin:
                self.server.broken -= 1
                body = body[: len(body) // 2]
                self.close_connection = True
            self.wfile.write(body)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(remote, "BLOCK_BYTES", 16 << 10)
    monkeypatch.setattr(remote, "PAUSE_S", 0.01)
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield running
        running.shutdown()


def left_behind(config: Config) -> list[str]:
    folder = fingerprint.cache_root(config) / "remote"
    return [path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_a_url_is_fetched_once_and_known_by_its_content(
    configure: Configure, server: Server, tmp_path: Path
) -> None:
    config = configure(train=server.url)
    assert isinstance(fingerprint.locate(config, "train")[0], RemoteData)
    assert fingerprint.lookup(config) is None
    found = prepare(config)
    cache = TokenCache.open(str(found["train"]))
    assert len(cache) == 2000
    assert cache.where(4) == f"{server.url}:5"
    (source,) = fingerprint.locate(config, "train")
    assert isinstance(source, RemoteFile)
    assert source.path.read_bytes() == LINES
    asked = len(server.asked)
    assert fingerprint.lookup(config) == found
    assert prepare(config) == found
    assert len(server.asked) == asked


def test_a_broken_transfer_goes_on_where_it_stopped(configure: Configure, server: Server) -> None:
    server.broken = 2
    config = configure(train=server.url)
    fetch(config)
    (source,) = fingerprint.locate(config, "train")
    assert isinstance(source, RemoteFile)
    assert source.path.read_bytes() == LINES
    firsts = [a for a in server.asked if a.startswith("bytes=0-")]
    assert len([a for a in firsts if a != "bytes=0-0"]) <= 1  # what had come was not asked again


def test_a_source_that_keeps_failing_leaves_nothing(configure: Configure, server: Server) -> None:
    server.broken = 1000
    config = configure(train=server.url)
    with pytest.raises(DataError, match="cannot be fetched") as caught:
        prepare(config)
    assert caught.value.problems[0].where == server.url
    assert left_behind(config) == []
    assert isinstance(fingerprint.locate(config, "train")[0], RemoteData)
    server.broken = 0
    assert prepare(config)["train"]


def test_a_missing_file_is_refused(configure: Configure, server: Server) -> None:
    server.gone = True
    config = configure(train=server.url)
    with pytest.raises(DataError, match="cannot be fetched"):
        prepare(config)
    assert left_behind(config) == []


def test_a_file_that_is_gone_from_the_cache_is_fetched_again(
    configure: Configure, server: Server
) -> None:
    config = configure(train=server.url)
    fetch(config)
    (source,) = fingerprint.locate(config, "train")
    assert isinstance(source, RemoteFile)
    source.path.write_bytes(LINES[:100])
    fetch(config)
    assert source.path.read_bytes() == LINES


def test_patterns_and_folders_of_object_stores(configure: Configure, tmp_path: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    for name in ("b.jsonl", "a.jsonl", "README.md"):
        store.pipe_file(f"/bucket/{name}", LINES)
    for url in ("memory://bucket/*.jsonl", "memory://bucket"):
        config = configure(train=url, cache=str(tmp_path / url.replace("/", "_")))
        fetch(config)
        found = fingerprint.locate(config, "train")
        assert [Path(s.url).name for s in found] == ["a.jsonl", "b.jsonl"]  # type: ignore[union-attr]


def test_an_unknown_kind_of_url_says_what_to_install(configure: Configure) -> None:
    with pytest.raises(ConfigError, match="another library"):
        fetch(configure(train="gs://bucket/a.jsonl"))
    with pytest.raises(DataError, match="cannot be fetched"):
        fetch(configure(train="nosuch://bucket/a.jsonl"))
