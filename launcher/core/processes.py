"""Processes of this host through /proc: who lives and descends from whom, how to end all, memory
that is left. Standard library only."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

#: Recorded times and start times come from two clocks, one of them in ticks of 10 ms.
_CLOCK_SLACK_S = 2.0
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "in an uninterruptible wait of the kernel",
    "T": "stopped by a signal",
    "t": "stopped by a debugger",
    "Z": "dead",
    "X": "dead",
}


def stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on: state, parent, process group, session, ..."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    return text[text.rindex(")") + 2 :].split()


def alive(pid: int, since: float) -> bool:
    """Whether the process that had `pid` at Unix time `since` still runs.

    Zombies and later processes with the same pid do not count.
    """
    if pid <= 0 or since <= 0:
        return False
    fields = stat(pid)
    if fields is None or fields[0] in "ZX":
        return False
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s <= since + _CLOCK_SLACK_S


def available_memory() -> int:
    """Bytes that processes may still take: of the host, and of the container if it is limited."""
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    fields = dict(line.split(":") for line in lines)
    available = int(fields["MemAvailable"].split()[0]) * 1024
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # no limit is the word "max"
        limit = int((group / "memory.max").read_text(encoding="utf-8"))
        available = min(
            available, limit - int((group / "memory.current").read_text(encoding="utf-8"))
        )
    return max(available, 0)


def space() -> str:
    """What process ids seen here belong to: this boot of this machine and this pid namespace.

    Containers of one host, or hosts that were given one name, do not see each other's processes.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def is_stopped(pid: int) -> bool:
    """Whether a signal or a debugger holds the process: it can do nothing for itself then."""
    fields = stat(pid)
    return fields is not None and fields[0] in "Tt"


def describe(pid: int, since: float) -> str:
    """State, kernel function and command line of the process that had `pid` at `since`."""
    fields = stat(pid) if alive(pid, since) else None
    if fields is None:
        return f"process {pid} is gone"
    parts = [f"state {fields[0]}"]
    with contextlib.suppress(OSError):
        function = Path(f"/proc/{pid}/wchan").read_text(encoding="utf-8").strip()
        parts += [f"in {function}"] if function not in ("", "0") else []
    with contextlib.suppress(OSError):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        parts.append(command.decode(errors="replace").strip()[:200])
    return f"process {pid} is {_STATES.get(fields[0], 'alive')} ({'; '.join(parts)})"


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


def start(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    *,
    cwd: Path | None = None,
    ends_with_parent: bool = True,
) -> subprocess.Popen[bytes]:
    """A process in a session of its own, deaf to the terminal; what it says is added to `log`."""
    with open(log, "ab") as output:
        return subprocess.Popen(  # noqa: S603 - commands of our own
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            cwd=cwd,
            env=environment,
            start_new_session=True,
            preexec_fn=end_with_parent() if ends_with_parent else None,
        )


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


def start_tick(pid: int) -> int:
    """When a process has begun, in ticks of the kernel's clock since boot; 0 if it is gone."""
    fields = stat(pid)
    return int(fields[19]) if fields is not None else 0


def kill_session(leader: int, since: int, within_s: float = 5.0) -> None:
    """SIGKILL what is left of the session whose leader had this pid and this `start_tick`."""
    end = time.monotonic() + within_s
    while since and start_tick(leader) in (0, since) and time.monotonic() < end:
        left = []
        for name in os.listdir("/proc"):
            fields = stat(int(name)) if name.isdecimal() else None
            if fields is not None and fields[0] not in "ZX":
                is_member = int(fields[3]) == leader and int(fields[19]) >= since
                left += [int(name)] if is_member else []
        if not left:
            return
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
