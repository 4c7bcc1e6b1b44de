"""Processes under a time limit, none of which survives it, with their output in a log."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
CHILD = Path(__file__).with_name("gpu_child.py")
#: Inherited by all that is started, so that what has left its process group is found too.
MARK = "LAUNCHER_EVIDENCE"
#: Bytes of a log's end that a failure shows.
TAIL = 1500


@dataclass(frozen=True, slots=True)
class Ended:
    """How a process ended: its exit code, None if it was killed at its limit, and its output."""

    exit_code: int | None
    seconds: float
    output: str

    @property
    def problem(self) -> str:
        """Why it failed; empty if it did not."""
        if self.exit_code is None:
            return f"not finished after {self.seconds:.0f} s"
        return f"exit code {self.exit_code}" if self.exit_code else ""


class Processes:
    """Starts processes with one environment, their output appended to logs in `folder`."""

    def __init__(self, folder: Path, scratch: Path, device: str) -> None:
        self.folder, self.scratch = folder, scratch
        mark = uuid.uuid4().hex
        self._mark = f"{MARK}={mark}".encode()
        path = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        self._environment = {
            **os.environ,
            MARK: mark,
            "PYTHONPATH": os.pathsep.join(filter(None, path)),
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "WANDB_MODE": "offline",
            "LAUNCHER_CACHE": str(scratch / "cache"),
        }
        if device == "cpu":
            self._environment["CUDA_VISIBLE_DEVICES"] = ""

    def start(
        self, command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None
    ) -> Running:
        """Start a process in a group of its own, its output appended to `log`; its stdin is a
        pipe."""
        with open(log, "ab") as out:
            out.write(f"\n$ {' '.join(command)[:2000]}\n".encode())
            out.flush()
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**self._environment, **(variables or {})},
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            return Running(process, log, out.tell())

    def run(
        self,
        command: Sequence[str],
        log: str,
        limit_s: float,
        variables: Mapping[str, str] | None = None,
    ) -> Ended:
        """Run a process to its end, or kill it after `limit_s` seconds."""
        return self.start(command, self.folder / log, variables).wait(limit_s)

    def end_all(self) -> None:
        """Kill whatever is left of what was started here."""
        for name in os.listdir("/proc"):
            if not name.isdecimal() or int(name) == os.getpid():
                continue
            with contextlib.suppress(OSError):
                if self._mark in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                    os.kill(int(name), signal.SIGKILL)


@dataclass
class Running:
    """A process that was started, and where its output begins in its log."""

    process: subprocess.Popen[bytes]
    log: Path
    offset: int

    def wait(self, limit_s: float) -> Ended:
        """Close its stdin and wait for its end."""
        began = time.monotonic()
        code: int | None = None
        try:
            assert self.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()
            code = self.process.wait(max(0.0, limit_s))
        except subprocess.TimeoutExpired:
            pass
        finally:
            self.kill()
        return Ended(code, time.monotonic() - began, self.output())

    def output(self) -> str:
        """What it has written so far."""
        with open(self.log, "rb") as file:
            file.seek(self.offset)
            return file.read().decode(errors="replace")

    def kill(self) -> None:
        """End it and its group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self.process.stdin.close()


class Measurements:
    """Processes of `gpu_child.py`: the next one imports while one measures."""

    def __init__(self, processes: Processes, log: str) -> None:
        self._processes, self._log = processes, log
        self._waiting: dict[str, tuple[Running, Path]] = {}

    def prepare(self, job: dict[str, Any], variables: Mapping[str, str]) -> None:
        """Start the process of a job; it imports what it needs, and waits."""
        if self._key(job) in self._waiting:
            return
        scratch = Path(tempfile.mkdtemp(dir=self._processes.scratch))
        whole = {
            **job,
            "scratch": str(scratch),
            "result": str(scratch / "result.json"),
            "started": time.time(),
        }
        command = [sys.executable, str(CHILD), json.dumps(whole)]
        # TRL wants the variables of a launcher, even for one process.
        ranks = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
        # A log of its own for now: the next one's lines would stand between.
        log = scratch / "log"
        running = self._processes.start(command, log, {**ranks, **place, **variables})
        self._waiting[self._key(job)] = running, scratch / "result.json"

    def measure(
        self, job: dict[str, Any], variables: Mapping[str, str], limit_s: float
    ) -> dict[str, Any]:
        """What the job's process found, or {"error": ...}."""
        self.prepare(job, variables)
        running, result = self._waiting.pop(self._key(job))
        assert running.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            running.process.stdin.write(b"start\n")
            running.process.stdin.flush()
        try:
            ended = running.wait(limit_s)
        finally:
            with open(self._processes.folder / self._log, "ab") as log:
                log.write(running.log.read_bytes())
        if result.is_file():
            found: dict[str, Any] = json.loads(result.read_text())
            return {"seconds": ended.seconds, **found}
        lines = [line.strip() for line in ended.output.splitlines() if line.strip()]
        last = [line for line in lines if not line.startswith("HINT:")][-1:]
        error = ended.problem + "".join(f": {line[:300]}" for line in last)
        return {"seconds": ended.seconds, "error": error, "output": ended.output[-TAIL:]}

    def close(self) -> None:
        """End those that wait in vain."""
        for running, _ in self._waiting.values():
            running.kill()
        self._waiting.clear()

    @staticmethod
    def _key(job: dict[str, Any]) -> str:
        return json.dumps(job, sort_keys=True)


def _free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])
