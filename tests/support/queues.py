"""Queues for tests of what every back end with one must do: a real Slurm, and a spool folder."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir
from launcher.launch.queue import QueueBackend, queue_of
from launcher.launch.spec import job_file
from support import leaks, plugins
from support.ranks import ROOT, environment
from support.slurm import Cluster, wait_for

LAUNCH = ROOT / "tests" / "launch"
#: A folder with a part of the namespace package `launcher_plugins`.
PLUGIN = LAUNCH / "spool"


@dataclass
class Bench:
    """A queue that takes jobs, and what a person can do to it by hand."""

    name: str
    environ: dict[str, str]
    """What finds it."""
    words: tuple[str, ...]
    """A run of `ranks` ranks that takes all of it."""
    one: tuple[str, ...]
    """A run of one rank."""
    ranks: int

    @property
    def backend(self) -> QueueBackend:
        """The launch back end."""
        found = queue_of(self.name)
        assert found is not None
        return found

    def requeue(self, job: str) -> None:
        """Have the queue take a running job back, and start it again."""
        raise NotImplementedError

    def cancel(self, job: str) -> None:
        """Take a job, a task or an array out of the queue."""
        raise NotImplementedError

    @contextmanager
    def full(self) -> Iterator[None]:
        """Nothing is started meanwhile."""
        raise NotImplementedError

    def has(self, run: RunDir) -> bool:
        """Whether a job of this run waits or runs."""
        raise NotImplementedError

    def empty(self) -> None:
        """End all jobs, and wait for that."""
        raise NotImplementedError

    def lose_answer(self, run: RunDir) -> None:
        """As if whoever submitted the first attempt had died before the queue's answer came."""
        raw = read_json(job_file(run, 1))
        raw.pop("job", None)
        write_json(job_file(run, 1), raw)


class SlurmBench(Bench):
    """A Slurm cluster."""

    def __init__(self, cluster: Cluster) -> None:
        spread = ("launch.nodes=2", "launch.processes=2", "cluster.sbatch=[--exclusive]")
        common = ("launch=slurm", "cluster.gpus_per_node=0", "train.threads=1")
        one = (*common, "launch.processes=1")
        super().__init__("slurm", cluster.environment, (*common, *spread), one, 4)
        self.cluster = cluster

    def requeue(self, job: str) -> None:
        self.cluster.run("scontrol", "requeue", job)

    def cancel(self, job: str) -> None:
        self.cluster.run("scancel", job)

    @contextmanager
    def full(self) -> Iterator[None]:
        command = ("sbatch", "--parsable", "--exclusive", "-N2", "-o", "/dev/null")
        job = self.cluster.run(*command, "--wrap=sleep 60")
        try:
            yield
        finally:
            self.cluster.run("scancel", job)

    def has(self, run: RunDir) -> bool:
        return run.name in self.cluster.run("squeue", "-h", "-o", "%j").split()

    def empty(self) -> None:
        self.cluster.run("scancel", f"--user={os.environ.get('USER', 'root')}", check=False)
        wait_for(lambda: not self.cluster.run("squeue", "-h", check=False), "the end of all jobs")


class SpoolBench(Bench):
    """A spool folder with a worker; all tasks of a run's job share this host."""

    def __init__(self, folder: Path) -> None:
        from launcher_plugins.spool.folder import Spool

        words = ("launch=spool", "launch.processes=1", "train.threads=1")
        super().__init__("spool", {"SPOOL": str(folder)}, words, words, 1)
        self.spool = Spool(folder)

    def requeue(self, job: str) -> None:
        self.spool.wish(job, "again")

    def cancel(self, job: str) -> None:
        for task in self._tasks(job):
            self.spool.wish(task, "end")

    @contextmanager
    def full(self) -> Iterator[None]:
        self.spool.close(True)
        try:
            yield
        finally:
            self.spool.close(False)

    def has(self, run: RunDir) -> bool:
        return any(
            str(run) in [path for path, _ in job["runs"]] and self._lives(number)
            for number, job in self.spool.all()
        )

    def empty(self) -> None:
        for number, _ in self.spool.all():
            self.cancel(number)
        wait_for(
            lambda: not any(self._lives(number) for number, _ in self.spool.all()),
            "the end of all jobs",
        )

    def _lives(self, number: str) -> bool:
        found = self.backend.observe(self._tasks(number))
        return any(job.state.value != "gone" for job in found.values())

    def _tasks(self, job: str) -> list[str]:
        if "_" in job:
            return [job]
        runs = dict(self.spool.all())[job]["runs"]
        return [f"{job}_{index}" for index in range(len(runs))]


@contextmanager
def slurm(cluster: Cluster) -> Iterator[SlurmBench]:
    """A cluster, found by this process and its children."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        _find(patch, LAUNCH)
        yield SlurmBench(cluster)


@contextmanager
def spool(folder: Path) -> Iterator[SpoolBench]:
    """A spool with its worker, and the plugin installed in this process and its children."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SPOOL", str(folder))
        _find(patch, LAUNCH, PLUGIN)
        with plugins.installed(PLUGIN):
            command = [sys.executable, "-m", "launcher_plugins.spool.worker", str(folder)]
            # Without the mark of what tests start: it outlives each of them.
            environ = {k: v for k, v in environment().items() if k != leaks.MARKER}
            with open(folder / "worker.log", "ab") as log:
                worker = subprocess.Popen(
                    command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            try:
                bench = SpoolBench(folder)
                wait_for(bench.spool.has_worker, "the worker", 60)
                yield bench
            finally:
                worker.terminate()
                worker.wait(60)


def _find(patch: pytest.MonkeyPatch, *folders: Path) -> None:
    """For children: modules of tests, and these."""
    places = [*map(str, folders), str(ROOT), os.environ.get("PYTHONPATH", "")]
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, places)))
