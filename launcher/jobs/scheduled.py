"""Runs in the hands of Slurm: what it knows about their jobs, however many, in one question."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import ExitCode, LauncherError
from launcher.launch.outcome import settled
from launcher.launch.spec import JobState, backend_name, job_file, number_in, open_file
from launcher.rundir import RunDir, State, Status, read_json

if TYPE_CHECKING:
    from launcher.launch.slurm_text import Job

#: In the place of a job's id while Slurm cannot be asked whether there is a job.
UNHEARD = "?"
#: Lines of a batch script's log that say why its ranks never began.
_LAST_LINES = 6


def job_of(path: str | Path, attempt: int) -> str | None:
    """Id of the Slurm job that works on an attempt; None if it is not in Slurm's hands."""
    raw = read_json(Path(path, "attempts", f"{attempt:04d}", "job.json"))
    if not isinstance(raw, dict) or raw.get("backend") != "slurm":
        return None
    return number_in(raw)


def in_charge(path: str | Path, status: Status) -> str | None:
    """Id of the Slurm job that may yet change a run's state; None if there is none.

    A rank writes that the run has failed before anybody decides whether it starts again, and a
    lost node takes along who would decide.
    """
    if settled(status):
        is_open = status.state in (State.failed, State.preempted)
        if not is_open or not open_file(RunDir(path), status.attempt).exists():
            return None
    return job_of(path, status.attempt) or _unheard_of(path, status.attempt)


def _unheard_of(path: str | Path, attempt: int) -> str | None:
    """Id of a job whose number never came back from its submission; None if there is none."""
    run = RunDir(path)
    if backend_name(run, attempt) != "slurm":
        return None
    from launcher.launch import slurm

    try:
        return slurm.recover(run, attempt)
    except LauncherError:
        return UNHEARD


def observed(run: RunDir, status: Status, job: str) -> Status:
    """The state of one run whose job is `job`."""
    return observe([(str(run), status, job)])[0]


def observe(runs: Sequence[tuple[str, Status, str]]) -> list[Status]:
    """States of runs given as (folder, status as written, job id), after asking Slurm once.

    If Slurm does not answer, that is said on stderr and the states are `unknown`.
    """
    if not runs:
        return []
    from launcher.launch import slurm_ask  # a listing without Slurm runs does without

    try:
        jobs = slurm_ask.jobs([job for _, _, job in runs if job != UNHEARD])
    except LauncherError as error:
        print(f"warning: the state of jobs is not known: {_first_line(error)}", file=sys.stderr)
        return [_unknown(status, "Slurm does not answer") for _, status, _ in runs]
    return [settle(path, status, job, jobs.get(job)) for path, status, job in runs]


def _first_line(error: LauncherError) -> str:
    return error.problems[0].found.splitlines()[0]


#: What ends the reason of a run whose job is gone from the queue; who did that is not known.
NEVER_BEGAN = "knows it no more: cancelled in Slurm"


def settle(path: str | Path, status: Status, number: str, job: Job | None) -> Status:
    """The state of the run at `path`, last read as `status`, when Slurm says `job` of its job."""
    if number == UNHEARD:
        return _unknown(status, "whether Slurm has its job is not known")
    if job is None or job.state is JobState.gone:
        # The job may have written its last word after the status was read.
        now = RunDir(path).status()
        if settled(now):
            return now
    found = judged(status, number, job)
    if found.state is State.failed and not settled(status):
        if job is None and status.state is State.queued and _others_began(RunDir(path), status):
            reason = f"job {number} never began, and Slurm {NEVER_BEGAN}"
            code = int(ExitCode.interrupted)
            return replace(found, state=State.cancelled, reason=reason, exit_code=code)
        cause = _cause(RunDir(path), status)
        return replace(found, reason=f"{found.reason}{cause}")
    return found


def _others_began(run: RunDir, status: Status) -> bool:
    """Whether other tasks of the run's array have left logs where this one has none: Slurm forgets
    soon that it was cancelled while it waited, and keeps no account of it everywhere."""
    from launcher.launch import slurm

    log = slurm.batch_log(run, status.attempt)
    is_task = "array" in (read_json(job_file(run, status.attempt)) or {})
    return is_task and log is not None and not log.exists() and any(log.parent.glob("slurm-*.log"))


def _cause(run: RunDir, status: Status) -> str:
    """What the batch script has left of why its ranks never began; "" if they did."""
    from launcher.launch import slurm

    log = slurm.batch_log(run, status.attempt)
    if log is None or run.log(status.attempt, 0).exists():
        return ""
    try:
        said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-_LAST_LINES:]
    except OSError:
        return (
            f"; it left no {log.name}: its nodes may not see {log.parent}, see"
            f" `srun ls {shlex.quote(str(log.parent))}`, and choose a run.root on a shared disk"
        )
    return f"; {log} ends: " + " | ".join(said) if said else ""


def judged(status: Status, number: str, job: Job | None) -> Status:
    """`status` as far as it can be true when Slurm says `job` of job `number`; pure.

    `job` is None where Slurm does not know it: too old, or never there.
    """
    if job is None:
        return _failed(status, f"lost: Slurm does not know job {number} and it left no result")
    if job.state is JobState.queued:
        why = f"job {number} waits: {job.reason or 'for its turn'}"
        reason = f"{why} ({status.reason})" if status.reason else why
        return replace(status, state=State.queued, reason=reason)
    if job.state is JobState.unknown:
        return _unknown(status, f"Slurm says {job.word} of job {number}")
    if job.state is JobState.running and settled(status):
        reason = f"{status.reason}; job {number} has not ended yet".removeprefix("; ")
        return replace(status, state=State.running, reason=reason, exit_code=None)
    if job.state is JobState.running:
        if status.state is State.queued and job.word != "COMPLETING":
            return replace(status, state=State.preparing, reason=f"job {number} starts")
        return status
    return _ended(status, number, job)


def _ended(status: Status, number: str, job: Job) -> Status:
    """A job that is gone without the run's status saying how."""
    if job.word == "CANCELLED" and "Dependency" not in job.reason:
        reason, code = f"job {number} was cancelled in Slurm", int(ExitCode.interrupted)
        return replace(status, state=State.cancelled, reason=reason, exit_code=code)
    if job.word == "OUT_OF_MEMORY":
        return _failed(status, f"job {number} ran out of memory", ExitCode.out_of_memory)
    said = {
        "CANCELLED": "was dropped: its preparation has failed, see prepare.log",
        "TIMEOUT": "reached its time limit before the ranks had saved; more launch.grace_s helps",
        "PREEMPTED": "was preempted before the ranks had saved",
        "NODE_FAIL": "lost a node",
    }
    return _failed(status, f"job {number} {said.get(job.word, f'ended in Slurm as {job.word}')}")


def _failed(status: Status, reason: str, code: ExitCode = ExitCode.internal) -> Status:
    return replace(status, state=State.failed, reason=reason, exit_code=int(code))


def _unknown(status: Status, why: str) -> Status:
    reason = f"{status.state.value} when last heard of; {why}"
    return replace(status, state=State.unknown, reason=reason)
