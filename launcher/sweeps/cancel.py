"""Cancel a sweep: first its controller, then every trial that has not ended."""

from __future__ import annotations

import os
import re
import signal
import socket
import time

from launcher.config.schema import variants
from launcher.core import processes
from launcher.core.errors import HangError
from launcher.core.rundir import RunDir, State
from launcher.launch.outcome import settled
from launcher.launch.queue import QueueBackend, has_queue
from launcher.launch.spec import backend_name
from launcher.runs import cancel as runs
from launcher.runs.logs import backend_of
from launcher.sweeps.folder import SweepDir

_CONTROLLER_S = 30.0


def cancel(sweep: SweepDir, *, now: bool) -> int:
    """Stop everything; returns how many trials are cancelled by it.

    A controller on another host is not reached: it finds its trials cancelled and starts the next.
    """
    _end_controller(sweep)
    open_trials = [trial for trial, status in sweep.states() if not status.state.is_final]
    queued: dict[str, list[tuple[RunDir, int]]] = {}
    others: list[tuple[RunDir, int]] = []
    for trial in open_trials:
        attempt = trial.run.status().attempt
        name = backend_name(trial.run, attempt) if attempt else None
        same = queued.setdefault(name, []) if name and has_queue(name) else others
        same.append((trial.run, attempt))
    for name, attempts in queued.items():
        queue: QueueBackend = variants.LAUNCHERS.load(name)()
        queue.cancel_many(attempts, now=now)
        for run, _ in attempts:
            if run.status().state is not State.succeeded:
                runs.set_cancelled(run)
    # All others are told before the first is waited for.
    for run, attempt in others:
        backend = backend_of(run, attempt) if attempt else None
        if backend is not None and not settled(run.status()):
            backend.cancel(run, attempt, now=now)
    for run, attempt in others:
        if not attempt:
            runs.set_cancelled(run, "cancelled before the start")
        elif not run.status().state.is_final:
            runs.cancel(run, now=now)
    return sum(trial.run.status().state is State.cancelled for trial in open_trials)


def _end_controller(sweep: SweepDir) -> None:
    """SIGKILL, which a controller survives by design: its trials are ended by us."""
    lock = sweep.path / ".lock"
    text = lock.read_text(encoding="utf-8") if lock.exists() else ""
    holder = re.fullmatch(r"host (\S+) pid (\d+)\s*", text)
    if not holder or holder[1] != socket.gethostname():
        return
    pid, since = int(holder[2]), lock.stat().st_mtime
    end = time.monotonic() + _CONTROLLER_S
    while processes.alive(pid, since) and pid != os.getpid():
        processes.send(pid, signal.SIGKILL)
        if time.monotonic() > end:
            raise HangError(f"the controller, pid {pid}, does not end", where=str(sweep))
        time.sleep(0.05)
