"""How fast `launcher serve` answers while many poll and upload, and what memory that takes.

    python tests/bench/api_load.py poll [--clients 200] [--every 1] [--uploaders 20] [--chats 50]
        [--trainer]
    python tests/bench/api_load.py requests [--count 100000]
    python tests/bench/api_load.py upload [--gigabytes 5]

`poll`: clients that ask for a job again and again, each after a pause, others that upload
training files, and others that chat with a model that knows nothing, both without a pause; of the
chats the fewest and most answers of a client are told. `--trainer` keeps all CPUs busy beside them
at the lowest priority, as a job does. `requests`: as many as the server answers; `upload`: one
file, sent in chunks.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[depth]) for depth in (1, 2)]

from launcher.serve.db.database import new_id  # noqa: E402
from launcher.serve.db.tables import Job, JobState  # noqa: E402
from launcher.serve.http import access  # noqa: E402
from launcher.serve.service import Service  # noqa: E402
from support.served import Served, resident_mib, served  # noqa: E402

SETTINGS = """
limits: {requests_per_minute: 100000000, file_bytes: 20000000000}
models: {tiny: {overrides: [model=tiny]}}
"""
LINE = (
    b'{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]}\n'
)
CHUNK = 1 << 20
WARM_S = 5.0


class Connection:
    """HTTP/1.1 over one socket, with as little work as can be: both sides share the CPUs."""

    def __init__(self, url: str, key: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._address = host, int(port)
        self.head = f"Host: {host}\r\nAuthorization: Bearer {key}\r\n".encode()

    async def open(self) -> None:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection(*self._address)

    async def get(self, path: str) -> bytes:
        """The body; fails unless the answer is 200."""
        self._writer.write(b"GET %b HTTP/1.1\r\n%b\r\n" % (path.encode(), self.head))
        return await self._answer()

    async def upload(self, pieces: Iterator[bytes]) -> bytes:
        """Send a form in chunks, as npm's openai does."""
        kind = b"Content-Type: multipart/form-data; boundary=b\r\nTransfer-Encoding: chunked\r\n"
        self._writer.write(b"POST /v1/files HTTP/1.1\r\n" + self.head + kind + b"\r\n")
        for piece in pieces:
            self._writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            await self._writer.drain()
        self._writer.write(b"0\r\n\r\n")
        return await self._answer()

    async def ask(self, text: str) -> bytes:
        """A chat with the model `tiny`, whose answer has eight tokens."""
        asked = {"model": "tiny", "messages": [{"role": "user", "content": text}], "max_tokens": 8}
        body = json.dumps(asked).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nContent-Type: application/json\r\n"
        self._writer.write(head + self.head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        return await self._answer()

    def close(self) -> None:
        """Hang up."""
        self._writer.close()

    async def _answer(self) -> bytes:
        head = await self._reader.readuntil(b"\r\n\r\n")
        size = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        body = await self._reader.readexactly(size)
        assert head.startswith(b"HTTP/1.1 200"), head + body
        return body


def form(content: Iterator[bytes]) -> Iterator[bytes]:
    """A form with the content as its file."""
    yield b'--b\r\nContent-Disposition: form-data; name="file"; filename="d.jsonl"\r\n\r\n'
    yield from content
    yield b'\r\n--b\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--b--\r\n'


def make_job(home: Path) -> str:
    """A job that is over, so that no controller touches it; returns its id."""
    service = Service.open(home)
    job = Job(
        id=new_id("ftjob-"),
        state=JobState.succeeded,
        model="tiny",
        training_file="file-none",
        seed=1,
        hyperparameters={"n_epochs": 3, "batch_size": 8, "learning_rate_multiplier": 1.0},
    )
    with service.database.begin() as session:
        job.project_id = access.find_project(session, "demo").id
        session.add(job)
    service.database.engine.dispose()
    return job.id


async def poll(server: Served, job: str, options: argparse.Namespace) -> None:
    """Print what clients wait for their answers."""
    waits: list[float] = []
    begin = time.monotonic() + WARM_S
    end = begin + options.seconds

    async def client(number: int) -> None:
        rng = random.Random(number)
        await asyncio.sleep(rng.random() * options.every)
        connection = Connection(server.url, server.key)
        await connection.open()
        while time.monotonic() < end:
            started = time.perf_counter()
            await connection.get(f"/v1/fine_tuning/jobs/{job}")
            if time.monotonic() > begin:
                waits.append(time.perf_counter() - started)
            await asyncio.sleep(options.every * rng.uniform(0.8, 1.2))
        connection.close()

    await asyncio.gather(*(client(number) for number in range(options.clients)))
    show("retrieve", waits, options.seconds)


async def send(url: str, key: str, options: argparse.Namespace) -> None:
    """Print how long uploads and chats take."""
    waits: list[float] = []
    answered = [0] * options.chats
    chats: list[float] = []
    end = time.monotonic() + WARM_S + options.seconds
    content = [LINE * (options.kilobytes * 1024 // 4 // len(LINE))] * 4

    async def uploader(number: int) -> None:
        connection = Connection(url, key)
        await connection.open()
        count = 0
        while time.monotonic() < end:
            started = time.perf_counter()
            mark = b'{"n": %d}\n' % (number * 1_000_000 + count)
            await connection.upload(form(iter([mark, *content])))
            waits.append(time.perf_counter() - started)
            count += 1
        connection.close()

    async def chatter(number: int) -> None:
        connection = Connection(url, key)
        await connection.open()
        while time.monotonic() < end:
            started = time.perf_counter()
            await connection.ask(f"{number} {answered[number]}")
            chats.append(time.perf_counter() - started)
            answered[number] += 1
        connection.close()

    clients = [*(uploader(number) for number in range(options.uploaders))]
    await asyncio.gather(*clients, *(chatter(number) for number in range(options.chats)))
    if waits:
        show("upload", waits, options.seconds + WARM_S)
    if chats:
        show("chat", chats, options.seconds + WARM_S)
        print(f"answers of one chat: {min(answered)} to {max(answered)}", flush=True)


def show(name: str, times: list[float], seconds: float) -> None:
    """A row of the table."""
    cuts = statistics.quantiles(times, n=100)
    shown = [1000 * value for value in (cuts[49], cuts[98], max(times))]
    cells = " | ".join(f"{value:8.1f}" for value in shown)
    print(f"| {name:<8} | {len(times) / seconds:8.1f} | {cells} |", flush=True)


@contextlib.contextmanager
def uploading(server: Served, options: argparse.Namespace) -> Iterator[None]:
    """Uploads and chats in a process of their own, so that they hold up no poll at its source."""
    names = ("uploaders", "kilobytes", "seconds", "chats")
    said = [f"--{name}={vars(options)[name]}" for name in names]
    words = ["send", f"--url={server.url}", f"--key={server.key}", *said]
    process = subprocess.Popen([sys.executable, __file__, *words])
    yield
    process.wait()


async def many(server: Served, job: str, count: int) -> None:
    """Print the server's memory as requests add up."""
    left = count

    async def client() -> None:
        nonlocal left
        connection = Connection(server.url, server.key)
        await connection.open()
        while left > 0:
            left -= 1
            await connection.get(f"/v1/fine_tuning/jobs/{job}")
        connection.close()

    print(f"{0:>8} requests {resident_mib(server.process.pid):7.1f} MiB")
    started, before_s = time.perf_counter(), cpu_s(server)
    step = count // 10
    for done in range(step, count + 1, step):
        left = step
        await asyncio.gather(*(client() for _ in range(16)))
        print(f"{done:>8} requests {resident_mib(server.process.pid):7.1f} MiB", flush=True)
    rate = count / (time.perf_counter() - started)
    cpu_ms = 1000 * (cpu_s(server) - before_s) / count
    print(f"{rate:.0f} requests a second, {cpu_ms:.2f} ms of the server's CPU each")


async def upload(server: Served, gigabytes: float) -> None:
    """Print the server's highest memory during one large upload."""
    before = resident_mib(server.process.pid)
    line = b'{"text": "' + b"x" * (CHUNK - 13) + b'"}\n'
    connection = Connection(server.url, server.key)
    await connection.open()
    count = int(gigabytes * 1e9 / CHUNK)
    started = time.perf_counter()
    made = await connection.upload(form(line for _ in range(count)))
    took_s = time.perf_counter() - started
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) / 1024
    print(made.decode())
    print(f"{count * CHUNK / 1e9:.2f} GB in {took_s:.0f} s; memory {before:.0f} -> {peak:.0f} MiB")


def cpu_s(server: Served) -> float:
    """CPU time that the server has used."""
    fields = Path(f"/proc/{server.process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def train(cpus: int) -> list[subprocess.Popen[bytes]]:
    """Processes that keep the CPUs busy at the lowest priority."""
    command = [sys.executable, "-c", "while True: sum(range(100_000))"]
    return [subprocess.Popen(command, preexec_fn=lambda: os.nice(19)) for _ in range(cpus)]


def main() -> None:
    """Start a server in a folder that goes afterwards, and load it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("poll", "requests", "upload", "send"))
    parser.add_argument("--url", help=argparse.SUPPRESS)
    parser.add_argument("--key", help=argparse.SUPPRESS)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--every", type=float, default=1.0, help="seconds between two polls")
    parser.add_argument("--uploaders", type=int, default=20)
    parser.add_argument("--chats", type=int, default=0)
    parser.add_argument("--kilobytes", type=int, default=1024, help="of an uploaded file")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--trainer", action="store_true", help="busy CPUs at low priority")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--gigabytes", type=float, default=5.0)
    options = parser.parse_args()
    if options.what == "send":  # see `uploading`
        asyncio.run(send(options.url, options.key, options))
        return
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        (home / "serve.yaml").write_text(SETTINGS)
        job = make_job(home)
        busy = train(os.cpu_count() or 1) if options.trainer else []
        try:
            with served(home) as server:
                if options.what == "poll":
                    head = ("", "a second", "p50 ms", "p99 ms", "max ms")
                    print(f"| {'':<8} | " + " | ".join(f"{name:>8}" for name in head[1:]) + " |")
                    print("|" + "----------|" * len(head), flush=True)
                    with (
                        uploading(server, options)
                        if options.uploaders or options.chats
                        else contextlib.nullcontext()
                    ):
                        asyncio.run(poll(server, job, options))
                elif options.what == "requests":
                    asyncio.run(many(server, job, options.count))
                else:
                    asyncio.run(upload(server, options.gigabytes))
        finally:
            for process in busy:
                process.kill()
                process.wait()


if __name__ == "__main__":
    main()
