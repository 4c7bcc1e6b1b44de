"""The launch back end: what a local run would start is started by the spool's worker."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from launcher_plugins.spool import SpoolConfig
from launcher_plugins.spool.folder import VARIABLE, Spool

from launcher.core.errors import ConfigError, Problem
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir, State
from launcher.launch.local import LocalBackend, prepare_log
from launcher.launch.queue import QueueHealth, QueueJob, queue_job
from launcher.launch.retry import BusyError, patiently
from launcher.launch.spec import AttemptState, LaunchPlan, LaunchSpec, job_file


class SpoolBackend:
    """Jobs in a folder."""

    outlives_follower = True
    title = "Spool"

    def plan(self, spec: LaunchSpec) -> LaunchPlan:
        """The commands of a local run."""
        assert isinstance(spec.options, SpoolConfig)
        asked = {"launch": spec.options, "cluster": spec.cluster, "threads": spec.threads}
        return dataclasses.replace(
            LocalBackend().plan(spec),
            backend="spool",
            requeues=spec.options.max_requeues,
            context=asked,
        )

    def check(self, spec: LaunchSpec) -> list[Problem]:
        """One host is all there is."""
        if spec.nodes == 1:
            return []
        return [Problem("launch.nodes", f"{spec.nodes} nodes; a spool has 1", "launch.nodes=1")]

    def submit(self, plan: LaunchPlan, *, attached: bool) -> str:
        """Write the job into the spool."""
        run, folder = RunDir(plan.run), RunDir(plan.run).attempt(plan.attempt)
        known = queue_job(run, plan.attempt) or self.recover(run, plan.attempt)
        if known:
            return known
        run.set_status(State.queued, attempt=plan.attempt)
        note = {**plan.to_json(), "base": plan.attempt}
        write_json(job_file(run, plan.attempt), note)
        job = Spool.here().submit(folder, [(plan.run, plan.attempt)])
        write_json(job_file(run, plan.attempt), {**note, "job": job})
        return job

    def submit_many(
        self,
        plans: Sequence[LaunchPlan],
        folder: Path,
        *,
        max_parallel: int | None,
        after: Sequence[str] = (),
    ) -> str:
        """The same for an array."""
        if any(plan.context != plans[0].context for plan in plans):
            raise ConfigError("trials of one array differ", where="launch=spool")
        job = Spool.here().submitted(folder)
        if job is None:
            folder.mkdir(parents=True, exist_ok=True)
            for index, plan in enumerate(plans):
                run = RunDir(plan.run)
                run.attempt(plan.attempt).mkdir(parents=True, exist_ok=True)
                run.set_status(State.queued, attempt=plan.attempt)
                note = {**plan.to_json(), "base": plan.attempt, "array": [str(folder), index]}
                write_json(job_file(run, plan.attempt), note)
            runs = [(plan.run, plan.attempt) for plan in plans]
            asked = {"max_parallel": max_parallel, "after": list(after), "array": True}
            job = Spool.here().submit(folder, runs, **asked)
        write_json(folder / "job.json", {"job": job})
        return job

    def recover(self, run: RunDir, attempt: int) -> str | None:
        """The job is found by the folder that was its key."""
        raw = read_json(job_file(run, attempt))
        if raw is None:
            return None
        array = raw.get("array")
        key = Path(array[0]) if array else run.attempt(raw.get("base", attempt))
        found = Spool.here().submitted(key)
        if found is None:
            return None
        note = key / "job.json" if array else job_file(run, attempt)
        write_json(note, {"job": found} if array else {**raw, "job": found})
        return queue_job(run, attempt)

    def observe(self, jobs: Sequence[str]) -> Mapping[str, QueueJob]:
        """What the worker has written."""
        spool = Spool.here()
        return {job: found for job in jobs if (found := spool.task(job)) is not None}

    def status(self, run: RunDir, attempt: int) -> AttemptState:
        """What `observe` says."""
        try:
            job = queue_job(run, attempt) or self.recover(run, attempt)
            found = self.observe([job]).get(job) if job else None
        except BusyError:
            return AttemptState.unknown
        return found.state if found else AttemptState.gone

    def log(self, run: RunDir, attempt: int) -> Path | None:
        """What the worker's child says."""
        job = queue_job(run, attempt)
        return Spool.here().file(job, "log") if job else None

    def logs(self, run: RunDir, attempt: int) -> list[Path]:
        """That, then preparation and rank 0."""
        own = self.log(run, attempt)
        return [*([own] if own else []), prepare_log(run, attempt), run.log(attempt, 0)]

    def cancel(self, run: RunDir, attempt: int, *, now: bool) -> None:
        """Wish it."""
        patiently(lambda: self._tell([(run, attempt)], now=now))

    def cancel_many(self, attempts: Sequence[tuple[RunDir, int]], *, now: bool) -> None:
        """Wish it of all, and wait."""
        left = patiently(lambda: self._tell(attempts, now=now))
        while any(job.state is not AttemptState.gone for job in self.observe(left).values()):
            time.sleep(0.05)

    def _tell(self, attempts: Sequence[tuple[RunDir, int]], *, now: bool) -> list[str]:
        found = (queue_job(run, number) or self.recover(run, number) for run, number in attempts)
        jobs = [job for job in found if job]
        for job in jobs:
            Spool.here().wish(job, "end" if now else "stop")
        return jobs

    def on_a_node(self, command: str) -> str:
        """There is one host."""
        return command

    def health(self) -> QueueHealth:
        """A worker lives."""
        try:
            spool = Spool.here()
        except BusyError as error:
            return QueueHealth(False, error.problems[0].found, f"set {VARIABLE}")
        if spool.has_worker():
            return QueueHealth(True, "the worker is there")
        hint = f"python -m launcher_plugins.spool.worker {spool.path}"
        return QueueHealth(True, "no worker", hint)
