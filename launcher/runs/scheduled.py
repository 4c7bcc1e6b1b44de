"""Runs in the hands of a queue: what it knows of their jobs, however many, in one question."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.core.errors import ExitCode, LauncherError
from launcher.core.files import read_json
from launcher.core.rundir import RunDir, State, Status
from launcher.launch.outcome import settled
from launcher.launch.spec import AttemptState, is_queued, job_file, number_in, open_file

if TYPE_CHECKING:  # a listing without queue jobs does without
    from launcher.launch.queue import QueueBackend, QueueJob

#: In the place of a job's id while its queue cannot be asked whether there is a job.
UNHEARD = "?"
#: Lines of a job's log that say why its ranks never began.
_LAST_LINES = 6


@dataclass(frozen=True, slots=True)
class Holder:
    """In whose hands a run is."""

    backend: str
    """Name of a launch back end with a queue, or of one that is not installed here."""
    job: str
    """Id of the queue job, or `UNHEARD`."""


def in_charge(path: str | Path, status: Status) -> Holder | None:
    """The queue job that may yet change a run's state; None if there is none.

    A rank writes that the run has failed before anybody decides whether it starts again, and a
    lost node takes along who would decide.
    """
    if settled(status):
        is_open = status.state in (State.failed, State.preempted)
        if not is_open or not open_file(RunDir(path), status.attempt).exists():
            return None
    raw = read_json(Path(path, "attempts", f"{status.attempt:04d}", "job.json"))
    if not isinstance(raw, dict) or not is_queued(raw):
        return None
    job = number_in(raw) or _unheard_of(raw["backend"], RunDir(path), status.attempt)
    return Holder(raw["backend"], job) if job else None


def _unheard_of(name: str, run: RunDir, attempt: int) -> str | None:
    """Id of a job whose number never came back from its submission; None if there is none."""
    queue = _queue_of(name)
    if queue is None:
        return UNHEARD
    try:
        return queue.recover(run, attempt)
    except LauncherError:
        return UNHEARD


def _queue_of(name: str) -> QueueBackend | None:
    from launcher.launch.queue import queue_of

    return queue_of(name)


def title(held: Holder) -> str:
    """The queue's name, for people."""
    queue = _queue_of(held.backend)
    return queue.title if queue else f"launch={held.backend}, which is not installed here"


def observed(run: RunDir, status: Status, held: Holder) -> Status:
    """The state of one run in these hands."""
    return observe([(str(run), status, held)])[0]


def observe(runs: Sequence[tuple[str, Status, Holder]]) -> list[Status]:
    """States of runs given as (folder, status as written, hands), after asking each queue once.

    If a queue does not answer, that is said on stderr and the states are `unknown`.
    """
    names = dict.fromkeys(held.backend for _, _, held in runs)
    found: dict[str, tuple[QueueBackend | None, Mapping[str, QueueJob] | None]] = {}
    for name in names:
        queue = _queue_of(name)
        jobs: Mapping[str, QueueJob] | None = None
        if queue is not None:
            asked = [h.job for _, _, h in runs if h.backend == name and h.job != UNHEARD]
            try:
                jobs = queue.observe(asked)
            except LauncherError as error:
                why = _first_line(error)
                print(f"warning: the state of jobs is not known: {why}", file=sys.stderr)
        found[name] = queue, jobs
    return [_seen(path, status, held, *found[held.backend]) for path, status, held in runs]


def _seen(
    path: str,
    status: Status,
    held: Holder,
    queue: QueueBackend | None,
    jobs: Mapping[str, QueueJob] | None,
) -> Status:
    if queue is None:
        return _unknown(status, f"launch={held.backend} is not installed here")
    if jobs is None:
        return _unknown(status, f"{queue.title} does not answer")
    return settle(queue, path, status, held.job, jobs.get(held.job))


def _first_line(error: LauncherError) -> str:
    return error.problems[0].found.splitlines()[0]


#: In the reason of a run whose job is gone from the queue; who did that is not known.
NEVER_BEGAN = " never began, and "


def settle(
    queue: QueueBackend, path: str | Path, status: Status, number: str, job: QueueJob | None
) -> Status:
    """The state of the run at `path`, last read as `status`, when its queue says `job` of its
    job."""
    if number == UNHEARD:
        return _unknown(status, f"whether {queue.title} has its job is not known")
    if job is None or job.state is AttemptState.gone:
        # The job may have written its last word after the status was read.
        now = RunDir(path).status()
        if settled(now):
            return now
    found = judged(queue.title, status, number, job)
    if found.state is State.failed and not settled(status):
        run = RunDir(path)
        log = queue.log(run, status.attempt)
        if job is None and status.state is State.queued and _others_began(run, status, log):
            what = f"{queue.title} knows it no more: cancelled in {queue.title}"
            code = int(ExitCode.interrupted)
            reason = f"job {number}{NEVER_BEGAN}{what}"
            return replace(found, state=State.cancelled, reason=reason, exit_code=code)
        return replace(found, reason=f"{found.reason}{_cause(queue, run, status, log)}")
    return found


def _others_began(run: RunDir, status: Status, log: Path | None) -> bool:
    """Whether other tasks of the run's array have left logs where this one has none: a queue may
    forget soon that it was cancelled while it waited, and keep no account of it."""
    is_task = "array" in (read_json(job_file(run, status.attempt)) or {})
    return is_task and log is not None and not log.exists() and any(log.parent.glob("*.log"))


def _cause(queue: QueueBackend, run: RunDir, status: Status, log: Path | None) -> str:
    """What the job has left of why its ranks never began; "" if they did."""
    if log is None or run.log(status.attempt, 0).exists():
        return ""
    try:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_LAST_LINES:]
    except OSError:
        look = queue.on_a_node(f"ls {shlex.quote(str(log.parent))}")
        return (
            f"; it left no {log.name}: its nodes may not see {log.parent}, see"
            f" `{look}`, and choose a run.root on a shared disk"
        )
    return f"; {log} ends: " + " | ".join(said) if said else ""


def judged(title: str, status: Status, number: str, job: QueueJob | None) -> Status:
    """`status` as far as it can be true when the queue called `title` says `job` of job `number`;
    pure.

    `job` is None where the queue does not know it: too old, or never there.
    """
    if job is None:
        reason = f"lost: {title} does not know job {number} and it left no result"
        return _failed(status, reason, lost=True)
    if job.state is AttemptState.queued:
        why = f"job {number} waits: {job.reason or 'for its turn'}"
        reason = f"{why} ({status.reason})" if status.reason else why
        return replace(status, state=State.queued, reason=reason)
    if job.state is AttemptState.unknown:
        return _unknown(status, f"{title} says {job.word} of job {number}")
    if job.state is AttemptState.running and settled(status):
        reason = f"{status.reason}; job {number} has not ended yet".removeprefix("; ")
        return replace(status, state=State.running, reason=reason, exit_code=None)
    if job.state is AttemptState.running:
        if status.state is State.queued and not job.is_ending:
            return replace(status, state=State.preparing, reason=f"job {number} starts")
        return status
    return _ended(title, status, number, job)


def _ended(title: str, status: Status, number: str, job: QueueJob) -> Status:
    """A job that is gone without the run's status saying how."""
    from launcher.launch.queue import Ending

    if job.ending is Ending.cancelled:
        reason, code = f"job {number} was cancelled in {title}", int(ExitCode.interrupted)
        return replace(status, state=State.cancelled, reason=reason, exit_code=code)
    if job.ending is Ending.out_of_memory:
        return _failed(status, f"job {number} ran out of memory", ExitCode.out_of_memory)
    said = {
        Ending.dropped: "was dropped: its preparation has failed, see prepare.log",
        Ending.time_limit: "reached its time limit before the ranks had saved;"
        " more launch.grace_s helps",
        Ending.preempted: "was preempted before the ranks had saved",
        Ending.lost_node: "lost a node",
    }
    how = said.get(job.ending, f"ended in {title} as {job.word}")
    lost = job.ending in (Ending.preempted, Ending.lost_node)
    return _failed(status, f"job {number} {how}", lost=lost)


def _failed(
    status: Status, reason: str, code: ExitCode = ExitCode.internal, *, lost: bool = False
) -> Status:
    return replace(status, state=State.failed, reason=reason, exit_code=int(code), lost=lost)


def _unknown(status: Status, why: str) -> Status:
    reason = f"{status.state.value} when last heard of; {why}"
    return replace(status, state=State.unknown, reason=reason)
