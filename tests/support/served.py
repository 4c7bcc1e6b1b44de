"""A service: its app in this process, or `launcher serve` in one of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from support.project import LAUNCHER
from support.ranks import environment

DEMO_KEY = "sk-demo"
START_S = 60.0


@dataclass
class Served:
    """A running server."""

    home: Path
    url: str
    """Without /v1."""
    key: str
    process: subprocess.Popen[str]
    log: Path
    """What it has written to stderr, the controller too."""
    _drain: threading.Thread = field(repr=False)

    @property
    def base_url(self) -> str:
        """For OPENAI_BASE_URL."""
        return f"{self.url}/v1"

    def client(self, key: str | None = None, timeout_s: float = 30.0) -> httpx2.Client:
        """A client of /v1 with a key."""
        headers = {"Authorization": f"Bearer {key or self.key}"}
        return httpx2.Client(base_url=self.base_url, headers=headers, timeout=timeout_s)

    def kill(self) -> None:
        """SIGKILL, as a crash."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"did not stop:\n{self.log.read_text()}") from None


def start(home: Path, *words: str, key: str = DEMO_KEY, **environ: str) -> Served:
    """`launcher serve` on a free port of this host; with `key` as the demo key unless empty."""
    home.mkdir(parents=True, exist_ok=True)
    born = time.time()
    log = home.parent / f"{home.name}.log"
    demo = ("--demo-key", key) if key else ()
    with open(log, "a") as errors:
        process = subprocess.Popen(
            [*LAUNCHER, "serve", "--port", "0", "--home", str(home), *demo, *words],
            env=environment(**environ),
            cwd=home.parent,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    assert process.stdout is not None
    timer = threading.Timer(START_S, process.kill)
    timer.start()
    url = process.stdout.readline().strip()
    timer.cancel()
    timer.join()
    if not url.startswith("http://"):
        process.kill()
        process.wait()
        raise AssertionError(f"the server did not start:\n{log.read_text()}")
    drain = threading.Thread(target=process.stdout.read, daemon=True)
    drain.start()
    # Or the guard against leaks would take the controller for a process of the first test.
    alive = home / "controller.alive"
    found = Served(home, url, key, process, log, drain)
    try:
        wait_until(lambda: alive.exists() and alive.stat().st_mtime >= born, "it", START_S)
    except AssertionError as error:
        found.kill()
        raise AssertionError(f"no controller:\n{log.read_text()}") from error
    return found


@contextlib.contextmanager
def served(home: Path, *words: str, key: str = DEMO_KEY, **environ: str) -> Iterator[Served]:
    """The same, stopped at the end."""
    found = start(home, *words, key=key, **environ)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.stop()
        found._drain.join(5)
        assert found.process.stdout is not None
        found.process.stdout.close()


def wait_until(condition: object, what: str, within_s: float = 30.0) -> None:
    """Until `condition()` is true; fails with `what` otherwise."""
    assert callable(condition)
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, f"waited in vain for {what}"
        time.sleep(0.02)


def resident_mib(pid: int) -> float:
    """Memory of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
