"""Processes of this host, seen through /proc: who lives, who descends from whom, how to end all."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable

from launcher.procfs import alive as alive
from launcher.procfs import stat

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def children(pid: int) -> list[int]:
    """Living direct children of `pid`."""
    return [child for child, parent in _parents().items() if parent == pid]


def descendants(pid: int) -> list[int]:
    """Living children of `pid`, their children and so on, whatever their session."""
    parents = _parents()
    found, known = [], {pid}
    grown = True
    while grown:
        new = [p for p, parent in parents.items() if parent in known and p not in known]
        known.update(new)
        found.extend(new)
        grown = bool(new)
    return found


def _parents() -> dict[int, int]:
    parents = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            fields = stat(int(name))
            if fields is not None and fields[0] not in "ZX":
                parents[int(name)] = int(fields[1])
    return parents


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process that may be gone by now."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def kill_descendants(within_s: float = 5.0) -> list[int]:
    """SIGKILL all descendants of this process until none is left; returns what would not die.

    Needs `adopt_orphans` before, or grandchildren whose parent has died escape.
    """
    end = time.monotonic() + within_s
    while True:
        left = descendants(os.getpid())
        if not left or time.monotonic() > end:
            return left
        for pid in left:
            send(pid, signal.SIGKILL)
        time.sleep(0.02)


def adopt_orphans() -> None:
    """Make orphaned descendants children of this process, not of init: none is lost sight of."""
    _prctl()(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_with_parent() -> Callable[[], None]:
    """A `preexec_fn` after which the child gets SIGTERM when this process dies, also by SIGKILL.

    The kernel watches the thread that forks, so start such a child from the main thread.
    """
    prctl = _prctl()
    parent = os.getpid()

    def ask() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it died between fork and prctl
            os._exit(1)

    return ask


def _prctl() -> Callable[..., int]:
    import ctypes  # `launcher status` does without

    prctl: Callable[..., int] = ctypes.CDLL(None).prctl
    return prctl
