"""Inside a Slurm job: `python -m launcher.launch.slurm.batch begin|prepare|watch|end RUN ...`.

The batch script calls `begin`, `prepare`, srun with `watch` beside it, `end`. Slurm may end the job
at any moment and start it again from the top, so each of them copes with what the one before has
left.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from types import FrameType

from launcher.config.compose import compose
from launcher.core.errors import ExitCode, LauncherError
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir, State
from launcher.launch import outcome, supervisor
from launcher.launch.guard import TICK_S, Guard
from launcher.launch.outcome import Death, settled
from launcher.launch.retry import BusyError
from launcher.launch.slurm import commands, environment, text
from launcher.launch.slurm.backend import stop_file
from launcher.launch.spec import LaunchPlan, job_file, number_in, open_file

#: Longest wait for a controller that is down, and the time between two tries.
_CONTROLLER_WAIT_S = 600.0
_RETRY_S = 5.0


def main(argv: list[str]) -> int:
    """One step of the batch script; the exit code is the script's."""
    step, *words = argv
    if step == "endpoint":
        print(environment.around().endpoint)
        return ExitCode.ok
    if step == "watch":
        return watch(RunDir(words[0]), int(words[1]))
    # Slurm's TERM goes to all processes of the job; what is written here must be written whole.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    run = RunDir(words[0])
    if step == "begin":
        return begin(run)
    attempt = int(words[1])
    if step == "prepare":
        return prepare(run, attempt)
    return end(run, attempt, int(words[2]))


def begin(run: RunDir) -> int:
    """Print the number of the attempt that starts here; print nothing if there is none to make."""
    around = environment.around()
    job, restarts = around.shown, around.restarts
    latest = max(run.attempts())
    raw = read_json(job_file(run, latest))
    owner = number_in(raw)
    if owner not in (None, job):
        _say(f"job {owner} has taken this run over: job {job} leaves it alone")
        return ExitCode.storage
    if owner is None:
        # Whoever has submitted it may never have heard of the job.
        write_json(job_file(run, latest), {**raw, "job": job})
    status = run.status()
    if status.state in (State.succeeded, State.cancelled):
        return ExitCode.ok
    if stop_file(run, latest).exists():
        _settle(run, State.cancelled, "cancelled by the user", ExitCode.interrupted)
        return ExitCode.ok
    if restarts > raw.get("requeues", 0):
        reason = status.reason or "Slurm has started the job again"
        _give_up(run, reason, status.exit_code or ExitCode.preempted, restarts)
        return ExitCode.ok
    attempt = raw["base"] + restarts
    if attempt != latest:
        if not settled(status) and status.state is not State.queued:
            _say(f"attempt {latest} has ended without a word: a lost node, or Slurm's requeue")
        folder = run.attempt(attempt)
        folder.mkdir(parents=True, exist_ok=True)
        log = str(folder / "agent.log")
        write_json(job_file(run, attempt), {**raw, "job": job, "attempt": attempt, "log": log})
    open_file(run, attempt).touch()
    run.set_status(State.preparing, attempt=attempt)
    print(attempt)
    return ExitCode.ok


def prepare(run: RunDir, attempt: int) -> int:
    """Make base and data where they are missing; settles the run if that fails or is stopped."""
    plan = _plan(run, attempt)
    os.chdir(plan.cwd)
    wishes = supervisor.Wishes()

    def note(number: int, frame: FrameType | None) -> None:
        wishes.stop = True

    signal.signal(signal.SIGTERM, note)
    return supervisor.prepare(run, plan, wishes)


def watch(run: RunDir, attempt: int) -> int:
    """Kill the ranks if they hang and none of them can act, as one that is stopped cannot."""
    job = environment.around().shown

    def kill() -> None:
        # Step by step: to kill the job would end the batch script too, which goes on to `end`.
        try:
            steps = commands.run("squeue", "--noheader", "--steps", f"--job={job}", "--format=%i")
            started = [step for step in steps.split() if step.rpartition(".")[2].isdecimal()]
            commands.run("scancel", *started)
        except LauncherError as error:
            _say(f"the ranks could not be ended: {error.problems[0].found}")

    guard = Guard(run, attempt, compose.load(run.config, runs_code=False).watchdog, kill)
    while True:  # until the batch script ends it
        guard.look()
        time.sleep(TICK_S)


def end(run: RunDir, attempt: int, code: int) -> int:
    """Say how the attempt ended and requeue the job where that helps; returns its exit code."""
    # What ranks and servers have no time to remove where a job is killed: weights, and a token.
    left = run.attempt(attempt) / "rollout"
    shutil.rmtree(left / "weights", ignore_errors=True)
    (left / "order.json").unlink(missing_ok=True)
    result = _end(run, attempt, code)
    open_file(run, attempt).unlink(missing_ok=True)
    return result


def _end(run: RunDir, attempt: int, code: int) -> int:
    plan, around = _plan(run, attempt), environment.around()
    job, restarts = around.shown, around.restarts
    stopped = stop_file(run, attempt).exists()
    death = None
    if plan.log.is_file():
        death = _death(plan, code)
        result = outcome.of_death(run, plan, death, stopped, False)
    else:
        result = run.status().exit_code or code
    status = run.status()
    if status.state is State.succeeded:
        return ExitCode.ok
    fields = _fields(job)
    if int(fields.get("Restarts", 0)) > restarts:
        _queue(run, f"Slurm starts the job again: {status.reason}")
        return result
    is_ending = fields.get("JobState") in ("COMPLETING", "CANCELLED")
    by_slurm = fields.get("Reason") == "TimeLimit" or text.is_preempted(fields)
    if is_ending and not stopped and not by_slurm:
        return _settle(run, State.cancelled, "cancelled in Slurm", ExitCode.interrupted)
    lost = death is not None and death.code < 0
    if stopped or not (result in outcome.WORTH_A_REQUEUE or lost):
        _say(f"{status.state.value}: {status.reason}")
        return result
    if restarts >= plan.requeues:
        return _give_up(run, status.reason, result, restarts)
    _queue(run, f"requeued: {status.reason}")
    problem = _requeue(job)
    if problem:
        reason = f"{status.reason}; the job could not be requeued: {problem}"
        return _settle(run, status.state, reason, result)
    return result


def _plan(run: RunDir, attempt: int) -> LaunchPlan:
    return LaunchPlan.from_json(read_json(job_file(run, attempt)))


def _death(plan: LaunchPlan, code: int) -> Death | None:
    """The rank whose end brought the others down, as srun or torch's agent tells it."""
    if code == 0:
        return None
    said = plan.log.read_text(encoding="utf-8", errors="replace")
    oom = text.out_of_memory(said)
    if oom is not None:
        return Death(oom, ExitCode.out_of_memory)
    by_agent = outcome.cause(plan, code) if "torch.distributed.run" in plan.command else None
    if by_agent is not None:
        return by_agent
    found = text.first_death(said)
    if found is None:  # srun itself was ended, or could not start the ranks
        return Death(0, 128 - code if code > 128 else code)
    # The stop at a step boundary is not brought about by a signal's default action alone.
    rank, how = found
    return Death(rank, ExitCode.preempted if -how == signal.SIGUSR1 else how)


def _fields(job: str) -> dict[str, str]:
    """What the controller says about the job; nothing if it does not answer."""
    deadline = time.monotonic() + _CONTROLLER_WAIT_S
    while True:
        try:
            return commands.fields(job)
        except BusyError as error:
            if time.monotonic() > deadline:
                _say(str(error))
                return {}
            time.sleep(_RETRY_S)
        except LauncherError as error:
            _say(str(error))
            return {}


def _requeue(job: str) -> str:
    """Ask for a requeue; Slurm then ends this job. Returns what went wrong."""
    deadline = time.monotonic() + _CONTROLLER_WAIT_S
    while True:
        try:
            commands.run("scontrol", "requeue", job)
        except LauncherError as error:
            if not isinstance(error, BusyError) or time.monotonic() > deadline:
                return error.problems[0].found
            time.sleep(_RETRY_S)
        else:
            return ""


def _queue(run: RunDir, reason: str) -> None:
    _say(reason)
    run.set_status(State.queued, reason=reason)


def _give_up(run: RunDir, reason: str, code: int, restarts: int) -> int:
    state = State.preempted if code == ExitCode.preempted else State.failed
    reason = f"{reason}; not requeued: launch.max_requeues is used up ({restarts} restarts)"
    return _settle(run, state, reason, code)


def _settle(run: RunDir, state: State, reason: str, code: int) -> int:
    _say(f"{state.value}: {reason}")
    status = run.set_status(state, reason=reason, exit_code=int(code))
    open_file(run, status.attempt).unlink(missing_ok=True)
    return int(code)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
