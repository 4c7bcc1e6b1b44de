"""`launch=slurm`: a batch job that Slurm, or the job itself, starts again until the run is done."""

from __future__ import annotations

import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from launcher.core import runtime
from launcher.core.errors import ConfigError, LauncherError, Problem
from launcher.core.files import read_json, storage_errors, write_atomic, write_json
from launcher.core.rundir import RunDir, State
from launcher.launch.outcome import settled
from launcher.launch.queue import (
    MISSING_S,
    ArrayError,
    FullError,
    QueueHealth,
    QueueJob,
    queue_job,
)
from launcher.launch.retry import BusyError, patiently
from launcher.launch.slurm import commands, environment, templates, text
from launcher.launch.spec import AttemptState, LaunchPlan, LaunchSpec, job_file

#: Seconds between two questions to the controller about one job.
_POLL_S = 5.0
_POLL_ENDING_S = 1.0
#: The signal that asks ranks for a checkpoint and a clean stop.
_STOP = "USR1"


class SlurmBackend:
    """A batch job: the script is a template of slurm/, the ranks are tasks of one srun."""

    title = "Slurm"
    #: A job goes on when whoever follows it goes away.
    outlives_follower = True

    def __init__(self) -> None:
        self._asked: dict[str, tuple[float, AttemptState]] = {}
        self._missing: dict[str, float] = {}

    def plan(self, spec: LaunchSpec) -> LaunchPlan:
        """The batch script; reads the template and nothing else."""
        context, launch = templates.context(spec), templates.options(spec)
        command = (*context["command"], *context["rank"])
        prepare_script = _render("prepare.sbatch.j2", context) if launch.prepare_job else None
        return LaunchPlan(
            backend="slurm",
            run=spec.run,
            attempt=spec.attempt,
            cwd=spec.cwd,
            prepare=templates.preparation(spec),
            command=("srun", *context["srun"], *command, "-m", spec.module),
            environment=context["environment"],
            processes=spec.nodes * spec.processes,
            log=RunDir(spec.run).attempt(spec.attempt) / "agent.log",
            script=_render("run.sbatch.j2", context),
            prepare_script=prepare_script,
            requeues=launch.max_requeues,
            handed_over=("sbatch prepare.sbatch", "sbatch job.sbatch"),
            context=context,
        )

    def check(self, spec: LaunchSpec) -> list[Problem]:
        """What Slurm would refuse now or never start, if `launch.check` is set."""
        from launcher.launch.slurm import check

        return check.check(spec) if templates.options(spec).check else []

    def submit(self, plan: LaunchPlan, *, attached: bool) -> str:
        """Hand the script to sbatch; returns the job's id. The job outlives this process.

        May be called again after a `BusyError`: what has come through is found, not repeated.
        """
        run = RunDir(plan.run)
        folder = run.attempt(plan.attempt)
        assert plan.script is not None
        known = queue_job(run, plan.attempt) or self.recover(run, plan.attempt)
        if known:
            return known
        # Before the job can start: it writes the same files.
        run.set_status(State.queued, attempt=plan.attempt)
        write_json(job_file(run, plan.attempt), {**plan.to_json(), "base": plan.attempt})
        after: list[str] = []
        if plan.prepare_script is not None:
            before = sbatch("prepare.sbatch", plan.prepare_script, folder)
            _note(run, plan.attempt, prepare_job=before)
            after = [f"--dependency=afterok:{before}", "--kill-on-invalid-dep=yes"]
        job = sbatch("job.sbatch", plan.script, folder, *after)
        _note(run, plan.attempt, job=job)
        return job

    def submit_many(
        self,
        plans: Sequence[LaunchPlan],
        folder: Path,
        *,
        max_parallel: int | None,
        after: Sequence[str] = (),
    ) -> str:
        """One array with one sbatch: task i works on the i-th run folder of `folder`/trials.txt."""
        if plans[0].prepare_script is not None:
            raise ConfigError(
                "a sweep prepares its data inside the trials",
                where="launch.prepare_job",
                hint="leave it out; `launcher data prepare` beforehand spares the GPUs the wait",
            )
        script = array_script(plans, folder, max_parallel)
        known = commands.submitted(folder / "job.sbatch") if folder.exists() else []
        if known:
            write_json(folder / "job.json", {"job": known[0]})
            return known[0]
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "trials.txt", "".join(f"{plan.run}\n" for plan in plans))
        for index, plan in enumerate(plans):
            run = RunDir(plan.run)
            run.attempt(plan.attempt).mkdir(parents=True, exist_ok=True)
            # What a power cut takes away before sbatch is written again.
            run.set_status(State.queued, attempt=plan.attempt, durable=False)
            content = {**plan.to_json(), "base": plan.attempt, "array": [str(folder), index]}
            write_json(job_file(run, plan.attempt), content, durable=False)
        turn = [f"--dependency=afterany:{':'.join(after)}"] if after else []
        job = sbatch("job.sbatch", script, folder, *turn)
        # At once and for all trials: who is killed now leaves no job that nobody knows.
        write_json(folder / "job.json", {"job": job})
        return job

    def status(self, run: RunDir, attempt: int) -> AttemptState:
        """Whether the job waits, runs or is gone; unknown while the controller does not answer.

        Asks at most every few seconds, so it may be called in a loop.
        """
        before = self._asked.get(str(run))
        wait_s = _POLL_S if not run.status().exit_code else _POLL_ENDING_S
        if before and time.monotonic() - before[0] < wait_s:
            return before[1]
        try:
            state = self._state(run, attempt)
        except BusyError:
            state = AttemptState.unknown
        self._asked[str(run)] = (time.monotonic(), state)
        return state

    def _state(self, run: RunDir, attempt: int) -> AttemptState:
        job = queue_job(run, attempt) or self.recover(run, attempt)
        if job is None:
            return AttemptState.gone
        found = commands.jobs([job]).get(job)
        if found or settled(run.status()):
            self._missing.pop(job, None)
            return found.state if found else AttemptState.gone
        # A controller that has just come back, or whose answer was cut, may know it yet.
        since = self._missing.setdefault(job, time.monotonic())
        return AttemptState.gone if time.monotonic() - since > MISSING_S else AttemptState.unknown

    def logs(self, run: RunDir, attempt: int) -> list[Path]:
        """What the batch script and the data preparation say, then rank 0's log."""
        own = self.log(run, attempt)
        ranks = [run.attempt(attempt) / "prepare.log", run.log(attempt, 0)]
        return [own, *ranks] if own else ranks

    def cancel(self, run: RunDir, attempt: int, *, now: bool) -> None:
        """Ask the ranks to save and stop; a job that has none, or is to end `now`, is cancelled."""
        patiently(lambda: self._tell([(run, attempt)], now=now))

    def cancel_many(self, attempts: Sequence[tuple[RunDir, int]], *, now: bool) -> None:
        """The same for many runs, with few questions; returns when all their jobs are gone."""
        left = patiently(lambda: self._tell(attempts, now=now))
        while left:
            time.sleep(_POLL_ENDING_S)
            known = patiently(partial(commands.jobs, left))
            left = [j for j in left if j in known and known[j].state is not AttemptState.gone]

    def recover(self, run: RunDir, attempt: int) -> str | None:
        """The job is found by its batch script, which no other job has."""
        raw = read_json(job_file(run, attempt), {})
        if not raw:
            return None
        array = raw.get("array")
        folder = Path(array[0]) if array else run.attempt(raw.get("base", attempt))
        found = next(iter(commands.submitted(folder / "job.sbatch")), None)
        if found is None:
            return None
        if array:
            write_json(folder / "job.json", {"job": found})
        else:
            _note(run, attempt, job=found)
        return queue_job(run, attempt)

    def observe(self, jobs: Sequence[str]) -> Mapping[str, QueueJob]:
        """One question to squeue, and one to sacct if that does not know all."""
        return commands.jobs(jobs)

    def log(self, run: RunDir, attempt: int) -> Path | None:
        """What the batch script of an attempt says, of all starts of its job."""
        raw = read_json(job_file(run, attempt), {})
        if raw.get("array"):
            folder, index = raw["array"]
            return Path(folder, f"slurm-{index}.log")
        return run.attempt(raw.get("base", attempt)) / "slurm.log" if raw else None

    def on_a_node(self, command: str) -> str:
        """A step of its own."""
        return f"srun {command}"

    def health(self) -> QueueHealth:
        """Slurm's commands are on the path, and its controller answers."""
        from launcher.launch.slurm import check

        return check.health()

    def _tell(self, attempts: Sequence[tuple[RunDir, int]], *, now: bool) -> list[str]:
        """Tell the jobs to end; returns those that are to be waited for."""
        for run, attempt in attempts:
            # First of all: a job that comes up later, or was never heard of, ends by itself.
            write_json(stop_file(run, attempt), {"now": now}, durable=len(attempts) == 1)
        before, of_job = {}, {}
        for run, attempt in attempts:
            job = queue_job(run, attempt) or self.recover(run, attempt)
            if job is not None:
                first = read_json(job_file(run, attempt), {}).get("prepare_job")
                before[job] = [first] if first else []
                of_job[job] = (run, attempt)
        to_end, to_stop = [], []
        for job, found in commands.jobs(list(of_job)).items():
            if found.state is AttemptState.gone:
                continue
            if now or found.state is not AttemptState.running or not _has_ranks(*of_job[job]):
                to_end += [*before[job], job]
            else:
                to_stop.append(job)
            self._asked.pop(str(of_job[job][0]), None)
        for some in commands.batches(to_end):
            commands.run("scancel", *some)
        for some in commands.batches(to_stop):
            commands.run("scancel", f"--signal={_STOP}", *some)
        return to_end + to_stop


def stop_file(run: RunDir, attempt: int) -> Path:
    """There once the user has cancelled: the job is then not requeued."""
    return run.attempt(attempt) / "cancelled.json"


def array_script(plans: Sequence[LaunchPlan], folder: Path, max_parallel: int | None) -> str:
    """The batch script of an array; `ConfigError` if the trials differ in more than their run."""
    first, own_keys = plans[0].context, {"run", "name", "attempt"}
    for plan in plans:
        differs = [k for k in first if k not in own_keys and plan.context[k] != first[k]]
        if differs:
            raise ConfigError(
                f"trials of one array differ in {', '.join(differs)}",
                where="launch=slurm",
                hint="sweep over keys other than those of `launch`, `cluster` and train.threads",
            )
    more = {
        "name": re.sub(r"[^A-Za-z0-9._=,+@-]", "-", folder.name) or "sweep",
        "count": len(plans),
        "max_parallel": max_parallel,
        "trials": str(folder / "trials.txt"),
    }
    return _render("array.sbatch.j2", {**first, **more})


def _render(template: str, context: Mapping[str, Any]) -> str:
    own = context["launch"].template
    if own is not None:
        own = Path(context["cwd"], runtime.user_path(own))
    return text.render(template, runtime.data_dir("slurm"), context, own)


def sbatch(name: str, script: str, folder: Path, *arguments: str) -> str:
    """Write a script to `folder` and submit it from there; returns the job's id.

    A job that an earlier call has brought about is found and not repeated. Raises `ConfigError`
    with Slurm's words if it is refused (`ArrayError` for too large an array), `BusyError` if
    another try may do.
    """
    is_again = (folder / name).exists()
    found = commands.submitted(folder / name) if is_again else []
    if found:
        return found[0]
    write_atomic(folder / name, script)
    command = ("sbatch", "--parsable", *arguments, name)
    for note in text.unread(script, environment.for_sbatch()):
        print(note, file=sys.stderr, flush=True)
    try:
        answer = commands.run(*command, cwd=folder)
        # On a federation: ID;CLUSTER.
        numbers = re.findall(r"^(\d+)(?:;.*)?$", answer, flags=re.MULTILINE)
        if not numbers:
            raise commands.SlurmDownError(f"sbatch names no job: {answer.strip()!r}")
        job = str(numbers[-1])
    except LauncherError as error:
        # Whatever it says, the controller may have taken the job.
        is_full = isinstance(error, FullError) and not error.is_open
        if not (is_full or isinstance(error, ConfigError)):
            found = commands.submitted(folder / name)
        if found:
            return found[0]
        if not isinstance(error, commands.SlurmRefusedError):
            raise
        is_array = isinstance(error, commands.SlurmArrayError)
        raise (ArrayError if is_array else ConfigError)(
            f"Slurm refuses the job: {error.problems[0].found}",
            where="launch=slurm",
            hint=f"mend `cluster` or `launch`; try it by hand in {folder}: {shlex.join(command)}",
        ) from error
    if is_again:
        # The first try may have come through after all.
        for other in commands.submitted(folder / name):
            if other != job:
                commands.run("scancel", other)  # it would find the run taken, but wait till then
    return job


def _note(run: RunDir, attempt: int, **numbers: str) -> None:
    raw = read_json(job_file(run, attempt), {})
    write_json(job_file(run, attempt), {**raw, **numbers})


def _has_ranks(run: RunDir, attempt: int) -> bool:
    return any(run.attempt(attempt).glob("rank-*.log"))
