"""A PostgreSQL server of Debian's package, in a folder, without network."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

SKIP = "needs PostgreSQL (Debian: postgresql)"

_USER = "postgres"


@contextlib.contextmanager
def postgres() -> Iterator[str | None]:
    """A server with the database `serve`; yields its URL, or None where there is none."""
    programs = _programs()
    if programs is None or (os.geteuid() == 0 and shutil.which("setpriv") is None):
        yield None
        return
    # Not below pytest's folder, which is closed to other users; and sockets' paths are short.
    folder = Path(tempfile.mkdtemp(prefix="launcher-pg-"))
    try:
        with _running(programs, folder) as url:
            yield url
    finally:
        shutil.rmtree(folder)


@contextlib.contextmanager
def _running(programs: Path, folder: Path) -> Iterator[str]:
    data = folder / "data"
    prefix = _as_nobody(folder)
    initdb = [*prefix, str(programs / "initdb"), "-D", str(data), "-U", _USER, "-A", "trust", "-N"]
    subprocess.run(initdb, check=True, capture_output=True, cwd=folder)
    options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={folder}"]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [*prefix, str(programs / "postgres"), "-D", str(data), *options],
            stdout=log,
            stderr=log,
            cwd=folder,
        )
    try:
        _create(programs, folder)
        yield f"postgresql+psycopg://{_USER}@/serve?host={folder}"
    finally:
        process.send_signal(2)  # fast: it waits for no client
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _create(programs: Path, folder: Path) -> None:
    createdb = [str(programs / "createdb"), "-h", str(folder), "-U", _USER, "serve"]
    end = time.monotonic() + 30
    while subprocess.run(createdb, capture_output=True).returncode:
        assert time.monotonic() < end, (folder / "log").read_text()
        time.sleep(0.1)


def _programs() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def _as_nobody(folder: Path) -> list[str]:
    """What to start a program with: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return []
    nobody = 65534
    os.chown(folder, nobody, nobody)
    return ["setpriv", f"--reuid={nobody}", f"--regid={nobody}", "--clear-groups"]
