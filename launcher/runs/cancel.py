"""Cancel a run: with a checkpoint, or now; then say so in its status."""

from __future__ import annotations

import contextlib
import signal
import socket
import time

from launcher.core import processes
from launcher.core.errors import ConfigError, ExitCode, HangError, StorageError
from launcher.core.files import write_atomic
from launcher.core.rundir import RunDir, State, Status
from launcher.launch.outcome import settled
from launcher.launch.queue import queue_job
from launcher.launch.spec import AttemptState, Backend
from launcher.runs import scheduled
from launcher.runs.logs import backend_of
from launcher.runs.status import heartbeats, is_live

_POLL_S = 0.1
_KILL_TIMEOUT_S = 30.0
_KILL_JOB_TIMEOUT_S = 300.0


def cancel(run: RunDir, *, now: bool = False, lost: bool = False) -> Status:
    """Stop the run, wait until its processes are gone, and return its final status.

    `now` ends the ranks without a checkpoint. `lost` only writes the state, for a run whose host is
    gone. A run that ends by itself meanwhile keeps its state. Raises `ConfigError` if it has ended
    already or runs on another host, `HangError` if processes stay.
    """
    status = run.status()
    # Written by a rank, while the job may start again.
    held = scheduled.in_charge(run.path, status) if settled(status) else None
    is_open = held is not None and not settled(scheduled.observed(run, status, held))
    if status.state.is_final and not is_open:
        raise ConfigError(
            f"the run is {status.state.value} already", where=str(run), hint="nothing to cancel"
        )
    if not lost and (is_open or not settled(status)):
        _stop(run, status, now=now)
    status = run.status()
    if status.state.is_final and not (is_open and status.state is State.failed):
        return status
    return set_cancelled(run)


def set_cancelled(run: RunDir, reason: str = "cancelled by the user") -> Status:
    """Say that the run was cancelled."""
    return run.set_status(State.cancelled, reason=reason, exit_code=int(ExitCode.interrupted))


def _stop(run: RunDir, status: Status, *, now: bool) -> None:
    if status.attempt and not now:
        with contextlib.suppress(StorageError):  # a full disk keeps nothing from being stopped
            write_atomic(run.wish(status.attempt), "launcher cancel")
    backend = backend_of(run, status.attempt)
    job = queue_job(run, status.attempt)
    if backend and backend.status(run, status.attempt) is not AttemptState.gone:
        backend.cancel(run, status.attempt, now=now)
    elif job is None:
        _stop_ranks(run, now=now)
    # A queue has a grace of its own before it kills.
    end = time.monotonic() + (_KILL_JOB_TIMEOUT_S if job else _KILL_TIMEOUT_S)
    while _is_there(run, status.attempt, backend):
        if now and time.monotonic() > end:
            raise HangError(
                "processes of the run do not end",
                where=str(run),
                hint="they may hang in the kernel (a device, a file server): see `ps` for state D",
            )
        time.sleep(_POLL_S)


def _stop_ranks(run: RunDir, *, now: bool) -> None:
    """Signal ranks that no back end looks after (started by torchrun or deepspeed directly)."""
    here = socket.gethostname()
    hosts = {beat["host"] for beat in heartbeats(run).values()} - {here}
    if hosts and not _live_ranks(run):
        raise ConfigError(
            f"the ranks run on {', '.join(sorted(hosts))}",
            where=str(run),
            hint=f"cancel there; if the hosts are gone for good, {run.command('cancel', '--lost')}",
        )
    for pid in _live_ranks(run):
        processes.send(pid, signal.SIGKILL if now else signal.SIGTERM)


def _live_ranks(run: RunDir) -> list[int]:
    here = socket.gethostname()
    beats = [beat for beat in heartbeats(run).values() if beat["host"] == here]
    return [beat["pid"] for beat in beats if processes.alive(beat["pid"], beat["time"])]


def _is_there(run: RunDir, attempt: int, backend: Backend | None) -> bool:
    if backend and backend.status(run, attempt) is not AttemptState.gone:
        return True
    return is_live(run.status()) or bool(_live_ranks(run))
