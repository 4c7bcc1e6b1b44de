"""What a test must leave as it found it: environment, processes, threads, working directory."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import uuid
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

#: Inherited by every process that a test starts, so that orphans are found too.
MARKER = "LAUNCHER_TEST_SESSION"

#: What pytest and imported libraries set once and for all; no test depends on it.
SET_BY_LIBRARIES = (
    "PYTEST_",
    "COLUMNS",
    "COV_CORE_",
    "CUDA_MODULE_LOADING",
    "KMP_",
    "NCCL_",
    "NUMEXPR_",
    "PYDEVD_",
    "PYTORCH_NVML_BASED_CUDA_CHECK",
    "TF2_BEHAVIOR",
    "TORCHINDUCTOR_",
    "TORCH_NCCL_",
    "TRITON_",
    "WANDB_",
    "ZE_",
)

#: Helpers that live as long as the process that started them, Python's and a server's.
HELPERS = (
    b"multiprocessing.resource_tracker",
    b"multiprocessing.forkserver",
    b"launcher/serve/files/jsonl.py",
    b"launcher.inference.worker",
    b"launcher.inference.grammar_check",
    b"launcher.inference.vllm.worker",
    b"launcher.vllm.keeper",
)

#: What has been told to end may take so long on a busy machine.
GRACE_S = 15.0


def mark() -> None:
    """Mark this process, so that those that it starts from now on can be told from all others."""
    os.environ[MARKER] = uuid.uuid4().hex


def pids() -> frozenset[int]:
    """All processes of this machine."""
    return frozenset(int(name) for name in os.listdir("/proc") if name.isdecimal())


def processes(before: Collection[int] = (), but: Collection[bytes] = HELPERS) -> dict[int, str]:
    """Living processes that tests have started, orphans too, without those in `before` and those
    with anything of `but` in their command lines: process id -> command line."""
    marker = f"{MARKER}={os.environ.get(MARKER, '')}".encode()
    found = {}
    for pid in pids().difference(before):
        entry = Path("/proc", str(pid))
        try:
            if marker not in _environ(entry).split(b"\0"):
                continue
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").strip()
        except OSError:
            continue
        if command and not any(helper in command for helper in but):
            found[pid] = command.decode(errors="replace")
    return found


def _environ(entry: Path) -> bytes:
    """A process's environment, waited for while the process is within `exec`: its parent goes on
    some instructions before it can be read."""
    for _ in range(50):
        found = (entry / "environ").read_bytes()
        if found or not os.readlink(entry / "exe"):  # kernel threads and the dead raise OSError
            return found
        time.sleep(0.002)
    return b""


def kill(pids: list[int]) -> None:
    """End these processes at once."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith(SET_BY_LIBRARIES)}


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.daemon}


@dataclass
class Snapshot:
    """The state of the process before a test."""

    folder: str = field(default_factory=os.getcwd)
    environment: dict[str, str] = field(default_factory=_environment)
    pids: frozenset[int] = field(default_factory=pids)  # who they are would take milliseconds
    threads: set[threading.Thread] = field(default_factory=_threads)

    def leaks(self) -> list[str]:
        """Mend what has changed since and say what it was."""
        # In this order: ending a process group or a process may end threads.
        return [
            *self._process_group(),
            *self._environment(),
            *self._folder(),
            *self._processes(),
            *self._threads(),
        ]

    def _process_group(self) -> list[str]:
        distributed = sys.modules.get("torch.distributed")
        if distributed is None or not distributed.is_available():
            return []
        if not distributed.is_initialized():
            return []
        distributed.destroy_process_group()
        return ["a torch.distributed process group"]

    def _environment(self) -> list[str]:
        before, now = self.environment, _environment()
        changed = sorted(k for k in before.keys() | now.keys() if before.get(k) != now.get(k))
        for name in changed:
            if name in before:
                os.environ[name] = before[name]
            else:
                del os.environ[name]
        return [f"environment variable {name}" for name in changed]

    def _folder(self) -> list[str]:
        try:
            now = os.getcwd()
        except FileNotFoundError:
            now = "a folder that is gone"
        if now == self.folder:
            return []
        os.chdir(self.folder)
        return [f"working directory {now}"]

    def _processes(self) -> list[str]:
        left = processes(self.pids)
        deadline = time.monotonic() + GRACE_S
        while left and time.monotonic() < deadline:
            time.sleep(0.05)
            left = {k: v for k, v in processes(self.pids).items() if k in left}
        kill(list(left))
        return [f"process {pid}: {command[:200]}" for pid, command in left.items()]

    def _threads(self) -> list[str]:
        left = _threads() - self.threads
        deadline = time.monotonic() + GRACE_S
        for thread in left:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [f"thread {thread.name}" for thread in left if thread.is_alive()]
