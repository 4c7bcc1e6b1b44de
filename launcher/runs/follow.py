"""Follow an attempt to its end: show log and progress, pass on Ctrl-C, return the exit code."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from launcher.core import console, runtime, streams
from launcher.core.errors import ExitCode, StorageError
from launcher.core.files import write_atomic
from launcher.core.rundir import RunDir, State, Status
from launcher.launch.outcome import settled
from launcher.launch.spec import AttemptState, Backend
from launcher.runs.status import is_live, observed_run, saved_step
from launcher.runs.tail import Tail

_POLL_S = 0.1
#: Exit codes of states that were written without one.
_CODES = {
    State.succeeded: ExitCode.ok,
    State.cancelled: ExitCode.interrupted,
    State.preempted: ExitCode.preempted,
}
#: Failures whose cause may be gone at the next attempt.
_PASSING = (ExitCode.hang, ExitCode.storage)
#: Lines of the starting command's own output shown when a run fails.
_LAST_LINES = 15


@dataclass(slots=True)
class _Interrupts:
    """Ctrl-C pressed so far; other wishes to stop count as the first, however often they come."""

    count: int = 0
    by: str = ""
    """Who asked first."""
    detached: bool = False
    """Whether the run was left to itself."""

    def note(self, number: int, frame: FrameType | None) -> None:
        self.ask("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)

    def ask(self, by: str) -> None:
        self.by = self.by or by
        self.count = self.count + 1 if by == "Ctrl-C" else max(self.count, 1)


class _Shown:
    """A view that outlives its reader: once nobody reads it, the run is asked to stop."""

    def __init__(self, view: console.Display, interrupts: _Interrupts) -> None:
        self._view, self._interrupts = view, interrupts

    def line(self, text: str) -> None:
        with self._read():
            self._view.line(text)

    def metrics(self, record: Mapping[str, Any], steps: int | None) -> None:
        with self._read():
            self._view.metrics(record, steps)

    def close(self) -> None:
        with self._read():
            self._view.close()

    @contextlib.contextmanager
    def _read(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:  # a pipe without a reader, a terminal that is gone, a full disk
            streams.discard(sys.stderr)
            self._interrupts.ask(f"its output ({error.strerror or error})")


def follow(run: RunDir, attempt: int, backend: Backend) -> int:
    """Show the attempt until it has ended; returns the exit code in status.json.

    The first Ctrl-C, SIGTERM or SIGHUP asks for a checkpoint and a clean stop, and so does output
    that nobody reads any more; the second Ctrl-C ends all at once. A job that outlives this process
    is only left to itself.
    """
    with _interrupts() as interrupts:
        view = _Shown(console.view(), interrupts)
        try:
            _watch(run, attempt, backend, view, interrupts)
        finally:
            view.close()
    if interrupts.detached:
        return ExitCode.interrupted
    status = observed_run(run)
    attempt = max(attempt, status.attempt)
    if not settled(status) or status.attempt != attempt:
        reason = "lost: the processes of the run are gone without a result"
        status = run.set_status(State.failed, reason=reason, exit_code=int(ExitCode.internal))
    _say_how_it_ended(run, attempt, status, _Shown(console.PlainView(), interrupts).line)
    return status.exit_code or _CODES.get(status.state, ExitCode.internal)


def _watch(
    run: RunDir, attempt: int, backend: Backend, view: console.Display, interrupts: _Interrupts
) -> None:
    logs = [Tail(path) for path in backend.logs(run, attempt)]
    # The log holds the numbers as plain lines, which a bar takes from metrics.jsonl instead.
    live = runtime.is_terminal()
    metrics = Tail(run.metrics, from_end=True)
    told, seen = 0, ""
    while True:
        # Asked before the files are read, so that nothing written up to the end is missed.
        ended = backend.status(run, attempt) is AttemptState.gone and not is_live(run.status())
        if backend.outlives_follower and (said := _waits(run)) != seen:
            seen = said
            view.line(said)
        for log in logs:
            for line in log.lines(final=ended):
                if not (live and line.startswith("step ")):
                    view.line(line)
        for line in metrics.lines() if live else []:
            with contextlib.suppress(ValueError):
                view.metrics(json.loads(line), run.status().steps)
        if ended:
            return
        further = run.status().attempt
        if further > attempt:  # the job has been started again
            attempt, logs = further, [Tail(path) for path in backend.logs(run, further)]
            view.line(f"attempt {attempt}")
        if interrupts.count > told:
            told = interrupts.count
            if backend.outlives_follower:
                interrupts.detached = True
                view.line(f"the job goes on: {run.command('logs', '-f')} follows it again,")
                view.line(f"{run.command('cancel')} stops it with a checkpoint")
                return
            if told == 1:
                with contextlib.suppress(StorageError):
                    write_atomic(run.wish(attempt), interrupts.by)
            _pass_on(run, attempt, backend, view, interrupts.by, now=told > 1)
        time.sleep(_POLL_S)


def _waits(run: RunDir) -> str:
    """Whether the job waits for its turn, and why."""
    status = run.status()
    if status.state is not State.queued:
        return "the job runs"
    return f"queued: {status.reason}" if status.reason else "queued"


def _pass_on(
    run: RunDir, attempt: int, backend: Backend, view: console.Display, by: str, *, now: bool
) -> None:
    if now:
        view.line("ending at once, without a checkpoint")
    else:
        view.line(f"{by}: the run saves a checkpoint and stops; Ctrl-C again ends it at once")
    backend.cancel(run, attempt, now=now)


@contextlib.contextmanager
def _interrupts() -> Iterator[_Interrupts]:
    noted = _Interrupts()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # Who starts it with nohup wants a hang-up ignored.
    heard = [n for n in numbers if signal.getsignal(n) is not signal.SIG_IGN or n != signal.SIGHUP]
    before = {n: signal.signal(n, noted.note) for n in heard}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_how_it_ended(
    run: RunDir, attempt: int, status: Status, say: Callable[[str], None]
) -> None:
    log = run.log(attempt, 0)
    if status.state is State.failed and not (log.is_file() and log.stat().st_size):
        # The ranks died before they had logs of their own.
        for line in Tail(run.attempt(attempt) / "agent.log").lines(final=True)[-_LAST_LINES:]:
            say(line)
    # Further lines of a reason stand in the log that was just shown; a hang, in that of any rank.
    lines = status.reason.splitlines()[: None if status.exit_code == ExitCode.hang else 1]
    if status.state is State.preempted and lines and _has_said(log, lines[0]):
        lines = []
    say(": ".join([status.state.value, *(["\n".join(lines)] if lines else [])]))
    if status.state is State.succeeded:
        return
    say(f"logs: {run.attempt(attempt)}")
    # A rank that was killed counts as a defect, which may show only after many steps.
    is_passing = status.exit_code in _PASSING or (
        status.exit_code == ExitCode.internal and saved_step(run) is not None
    )
    if status.state in (State.preempted, State.cancelled) or is_passing:
        say(f"HINT: {run.command('resume')} goes on from {_saved(run)}")


def _has_said(log: Path, line: str) -> bool:
    return log.is_file() and line in Tail(log).lines(final=True)[-_LAST_LINES:]


def _saved(run: RunDir) -> str:
    step = saved_step(run)
    return "the beginning: no checkpoint was saved" if step is None else f"step {step}"
