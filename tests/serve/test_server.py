"""`launcher serve` as a process: raw sockets, slow and rude clients, its end, and its keys."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.project import LAUNCHER
from support.ranks import environment
from support.served import DEMO_KEY, Served, resident_mib, wait_until
from support.served import served as serving

pytestmark = pytest.mark.slow

LINE = b'{"messages": []}\n'
HEAD = f"Host: localhost\r\nAuthorization: Bearer {DEMO_KEY}\r\n".encode()


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A server that waits for a second."""
    home = tmp_path_factory.mktemp("impatient") / "home"
    home.mkdir()
    (home / "serve.yaml").write_text("limits: {idle_s: 1, file_bytes: 12000000}\n")
    with serving(home) as found:
        yield found


def connect(server: Served) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return socket.create_connection((host, int(port)), timeout=15)


def all_of(connection: socket.socket) -> bytes:
    """What comes until the server closes."""
    got = b""
    while piece := connection.recv(65536):
        got += piece
    return got


def form(content: bytes, *, file_first: bool) -> bytes:
    file = b'Content-Disposition: form-data; name="file"; filename="d.jsonl"\r\n\r\n' + content
    purpose = b'Content-Disposition: form-data; name="purpose"\r\n\r\nfine-tune'
    parts = [file, purpose] if file_first else [purpose, file]
    return b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize("file_first", [True, False])
def test_a_chunked_form_in_any_order(served: Served, file_first: bool) -> None:
    body = chunked(form(LINE * 10, file_first=file_first), 7)
    with connect(served) as connection:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\n" + HEAD + b"Connection: close\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n" + body
        )
        answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    made = json.loads(answer.rpartition(b"\r\n\r\n")[2])
    assert (made["bytes"], made["filename"]) == (len(LINE) * 10, "d.jsonl")


def test_what_is_no_http_is_refused_in_the_envelope(served: Served) -> None:
    with connect(served) as connection:
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 400")
    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"]["message"]


@pytest.mark.parametrize("begun", [b"", b"GET /v1/files HTT", b"GET / HTTP/1.1\r\nHost: x\r\n"])
def test_a_head_has_its_time(impatient: Served, begun: bytes) -> None:
    started = time.monotonic()
    with connect(impatient) as connection:
        connection.sendall(begun)
        for _ in range(30):  # a letter now and then does not help
            time.sleep(0.1)
            try:
                connection.sendall(b"x" if begun else b"")
            except OSError:
                break
        with contextlib.suppress(ConnectionResetError):
            assert all_of(connection) == b""
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/files HTTP/1.1\r\nContent-Type: multipart/form-data; boundary=b\r\n",
        b"POST /v1/uploads HTTP/1.1\r\nContent-Type: application/json\r\n",
        b"POST /v1/nothing HTTP/1.1\r\nContent-Type: application/json\r\n",
    ],
)
def test_a_body_has_its_time(impatient: Served, head: bytes) -> None:
    with connect(impatient) as connection:
        connection.sendall(head + HEAD + b"Content-Length: 100000\r\n\r\n--b\r\n")
        answer = all_of(connection)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"did not come in time" in answer


def test_a_refused_body_is_not_read_forever(impatient: Served) -> None:
    with connect(impatient) as connection:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\nHost: x\r\nContent-Length: 10000000\r\n\r\nabc"
        )
        started = time.monotonic()
        try:
            for _ in range(100):
                time.sleep(0.1)
                connection.sendall(b"x")
        except OSError:
            pass
        assert time.monotonic() - started < 8
    assert not list((impatient.home / "files" / "incoming").glob("*"))


@pytest.mark.parametrize("reads", [0, 3000])
def test_a_download_is_not_held_open_by_who_does_not_read(impatient: Served, reads: int) -> None:
    """It is left; who reads slowly, but on, is not.

    The file is larger than what a socket keeps: all of a smaller one is sent at once.
    """
    with impatient.client() as client:
        form = {"files": {"file": ("a", b"x" * 12_000_000)}, "data": {"purpose": "evals"}}
        made = client.post("/files", **form).json()["id"]
        held = [f"/proc/{impatient.process.pid}/fd/{n}" for n in range(64)]

        def is_open() -> bool:
            return any("/sha256/" in os.readlink(fd) for fd in held if os.path.lexists(fd))

        with socket.socket() as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, _, port = impatient.url.removeprefix("http://").partition(":")
            connection.connect((host, int(port)))
            connection.sendall(b"GET /v1/files/%b/content HTTP/1.1\r\n" % made.encode() + HEAD)
            connection.sendall(b"\r\n")
            wait_until(is_open, "the download to begin")
            end = time.monotonic() + 5
            while time.monotonic() < end and (reads or is_open()):
                connection.recv(reads) if reads else None
                time.sleep(0.2)
            assert is_open() == bool(reads)
        wait_until(lambda: not is_open(), "the file to be closed")
        client.delete(f"/files/{made}")


def test_too_large_a_file_is_refused_on_its_way(impatient: Served) -> None:
    def pieces() -> Iterator[bytes]:
        whole = form(b"x" * 20_000_000, file_first=True)
        for at in range(0, len(whole), 65536):
            yield whole[at : at + 65536]

    with impatient.client() as client:
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        answer = client.post("/files", content=pieces(), headers=kind)
        assert answer.status_code == 413
        assert client.get("/files").json()["data"] == []
    assert not [path for path in (impatient.home / "files").rglob("*") if path.is_file()]


def test_whoever_goes_leaves_nothing(served: Served) -> None:
    with connect(served) as connection:
        connection.sendall(
            b"POST /v1/files HTTP/1.1\r\n" + HEAD + b"Content-Length: 10000000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            + form(LINE * 100_000, file_first=True)[:-20]
        )
        incoming = served.home / "files" / "incoming"
        wait_until(lambda: list(incoming.glob("*")), "the file to begin")
    wait_until(lambda: not list(incoming.glob("*")), "the file to go")


def test_health_and_numbers(served: Served) -> None:
    with served.client() as client:
        client.get("/files/file-none")
        assert client.get(f"{served.url}/healthz").json() == {"status": "ok"}
        ready = client.get(f"{served.url}/readyz")
        assert ready.status_code == 200
        assert set(ready.json().values()) == {"ok"}
        text = client.get(f"{served.url}/metrics").text
    wanted = r'launcher_requests_total\{method="GET",route="/v1/files/\{file_id\}",status="404"\} 1'
    assert re.search(wanted, text)
    assert 'launcher_jobs{state="running"} 0.0' in text
    assert 'launcher_eval_runs{state="in_progress"} 0.0' in text
    assert "launcher_uploaded_bytes_total" in text
    assert DEMO_KEY not in text + served.log.read_text()


def launcher(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAUNCHER, *map(str, words)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_keys_come_and_go_while_the_server_runs(served: Served) -> None:
    home = ("--home", served.home)
    made = launcher("serve", "keys", "create", "alice", "--project", "p", "--rpm", 100, *home)
    key = made.stdout.strip()
    assert key.startswith("sk-")
    listed = json.loads(launcher("serve", "keys", "list", "--json", *home).stdout)
    (found,) = [row for row in listed if row["name"] == "alice"]
    assert (found["project"], found["requests_per_minute"], found["revoked_at"]) == ("p", 100, None)
    assert key not in json.dumps(listed)
    with served.client(key) as client:
        assert client.get("/files").status_code == 200
        assert launcher("serve", "keys", "revoke", found["id"], *home).returncode == 0
        time.sleep(1.1)
        assert client.get("/files").status_code == 401
    assert "revoked" in launcher("serve", "keys", "list", *home).stdout
    assert launcher("serve", "keys", "revoke", "key_x", *home).returncode == 2
    assert launcher("serve", "keys", "create", "a\nb", *home).returncode == 2


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--host", "0.0.0.0", "--demo-key", "sk-demo"), "only for this host"),  # noqa: S104
        (("--demo-key", " "), "the demo key is empty"),
        (("--port", "99999"), "cannot listen"),
    ],
)
def test_what_will_not_do(tmp_path: Path, words: tuple[str, ...], found: str) -> None:
    ended = launcher("serve", "--port", 0, "--home", tmp_path / "home", *words)
    assert ended.returncode == 2
    assert found in ended.stderr
    assert "HINT" in ended.stderr


def test_it_stops_at_once_and_takes_its_controller_along(tmp_path: Path) -> None:
    with serving(tmp_path / "home", "--log-format", "json") as server:
        with server.client() as client:
            client.get("/files")
        assert server.stop() == 0
        lines = server.log.read_text().splitlines()
    told = [json.loads(line) for line in lines if line.startswith("{")]
    (request,) = [line for line in told if line["message"] == "request"]
    assert (request["route"], request["status"], request["key"]) == ("/v1/files", 200, "key_demo")


def test_killed_in_the_middle_of_uploads_nothing_half_is_left(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with serving(home) as server:
        with server.client() as client:
            whole = client.post(
                "/files", files={"file": ("a", LINE * 1000)}, data={"purpose": "evals"}
            ).json()
        with connect(server) as connection:
            connection.sendall(
                b"POST /v1/files HTTP/1.1\r\n" + HEAD + b"Content-Length: 10000000\r\n"
                b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
                + form(LINE * 100_000, file_first=True)[:-20]
            )
            incoming = home / "files" / "incoming"
            wait_until(lambda: list(incoming.glob("*")), "the file to begin")
            server.kill()
    for left in incoming.glob("*"):
        os.utime(left, (0, 0))  # it was long ago
    with serving(home) as server, server.client() as client:
        assert [file["id"] for file in client.get("/files").json()["data"]] == [whole["id"]]
        assert client.get(f"/files/{whole['id']}/content").content == LINE * 1000
        wait_until(lambda: not list(incoming.glob("*")), "what is left to go")


def test_a_large_file_passes_through_little_memory(tmp_path: Path) -> None:
    """The whole of 5 GB is measured by tests/bench/api_load.py."""
    piece = b'{"text": "' + b"x" * (1 << 20) + b'"}\n'

    def pieces() -> Iterator[bytes]:
        head, _, end = form(b"@", file_first=True).partition(b"@")
        yield head
        for _ in range(300):
            yield piece
        yield end

    with serving(tmp_path / "home") as server, server.client(timeout_s=120) as client:
        before = resident_mib(server.process.pid)
        kind = {"Content-Type": "multipart/form-data; boundary=b"}
        made = client.post("/files", content=pieces(), headers=kind)
        assert made.json()["bytes"] == 300 * len(piece)
        assert resident_mib(server.process.pid) - before < 100
        size = 0
        with client.stream("GET", f"/files/{made.json()['id']}/content") as content:
            for got in content.iter_bytes():
                size += len(got)
        assert size == 300 * len(piece)
        assert resident_mib(server.process.pid) - before < 100
        client.delete(f"/files/{made.json()['id']}")
