"""Processes of this host as /proc shows them. Standard library only."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

#: Recorded times and start times come from two clocks, one of them in ticks of 10 ms.
_CLOCK_SLACK_S = 2.0
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
