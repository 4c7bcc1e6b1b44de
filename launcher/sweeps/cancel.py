"""Cancel a sweep: first its controller, then every trial that has not ended."""

from __future__ import annotations

import os
import re
import signal
import socket
import time

from launcher.errors import ExitCode, HangError
from launcher.jobs import cancel as runs
from launcher.jobs.logs import backend_of
from launcher.launch import processes, slurm
from launcher.launch.outcome import settled
from launcher.rundir import State
from launcher.sweeps.folder import SweepDir, Trial

_CONTROLLER_S = 30.0


def cancel(sweep: SweepDir, *, now: bool) -> int:
    """Stop everything; returns how many trials are cancelled by it.

    A controller on another host is not reached: it finds its trials cancelled and starts the next.
    """
    _end_controller(sweep)
    open_trials = [trial for trial, status in sweep.states() if not status.state.is_final]
    queued = [trial for trial in open_trials if slurm.job_id(trial.run, trial.run.status().attempt)]
    attempts = [(trial.run, trial.run.status().attempt) for trial in queued]
    slurm.SlurmBackend().cancel_many(attempts, now=now)
    for run, _ in attempts:
        if run.status().state is not State.succeeded:
            reason, code = "cancelled by the user", int(ExitCode.interrupted)
            run.set_status(State.cancelled, reason=reason, exit_code=code)
    # All others are told before the first is waited for.
    for trial in open_trials:
        if trial in queued:
            continue
        attempt = trial.run.status().attempt
        backend = backend_of(trial.run, attempt) if attempt else None
        if backend is not None and not settled(trial.run.status()):
            backend.cancel(trial.run, attempt, now=now)
    for trial in open_trials:
        if trial not in queued:
            _settle(trial, now=now)
    return sum(trial.run.status().state is State.cancelled for trial in open_trials)


def _settle(trial: Trial, *, now: bool) -> None:
    if trial.run.status().attempt:
        if not trial.run.status().state.is_final:
            runs.cancel(trial.run, now=now)
        return
    reason, code = "cancelled before the start", int(ExitCode.interrupted)
    trial.run.set_status(State.cancelled, reason=reason, exit_code=code)


def _end_controller(sweep: SweepDir) -> None:
    """SIGKILL, which a controller survives by design: its trials are ended by us."""
    lock = sweep.path / ".lock"
    text = lock.read_text() if lock.exists() else ""
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
