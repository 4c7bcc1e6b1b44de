"""Begin an attempt of a run: take its number under the run's lock, hand it to the back end."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from launcher.config import compose, items, variants
from launcher.config.schema import Config
from launcher.errors import ConfigError, ExitCode, StorageError
from launcher.jobs import scheduled
from launcher.jobs.status import is_live
from launcher.launch.outcome import settled
from launcher.launch.spec import Backend, LaunchPlan, LaunchSpec
from launcher.rundir import RunDir, State, Status, read_json, storage_errors
from launcher.runtime import cache_dir, cpu_count, hub_cache


def begin(run: RunDir) -> int:
    """Claim the next attempt and return its number.

    Raises `StorageError` if another process works on the run, or may do so on another host.
    """
    with run.lock():
        status = _without_job(run)
        if status.attempt and is_live(status):
            raise StorageError(
                f"another process works on this run: host {status.host} pid {status.pid}",
                where=str(run),
                hint=f"wait for it, or stop it with {run.command('cancel')}",
            )
        if not settled(status) and status.attempt and status.host != socket.gethostname():
            raise StorageError(
                f"the run is {status.state.value} on host {status.host}, as far as is known here",
                where=str(run),
                hint=f"run {run.command('cancel')} there; if that host is gone for good, "
                f"{run.command('cancel', '--lost')} here, then resume",
            )
        attempt = max(run.attempts(), default=0) + 1
        with storage_errors(run.path):
            run.attempt(attempt).mkdir(parents=True)
        run.set_status(State.preparing, attempt=attempt)
    return attempt


def _without_job(run: RunDir) -> Status:
    """The run's state; `StorageError` while a job of Slurm works on it, or may do so."""
    status = run.status()
    job = scheduled.in_charge(run.path, status)
    if job is None:
        return status
    seen = scheduled.observed(run, status, job)
    if settled(seen):
        return seen
    raise StorageError(
        f"job {job} of this run is {seen.state.value} in Slurm: {seen.reason}".rstrip(": "),
        where=str(run),
        hint=f"wait for it, or stop it with {run.command('cancel')}",
    )


def rehearsed(run: RunDir, config: Config, world_size: int, *, ask: bool) -> LaunchPlan:
    """What the first attempt of a run that is not made yet would submit.

    With `ask` the back end's scheduler is asked too; `ConfigError` with all that it would refuse.
    """
    made = _spec(run, 1, config, world_size, Path.cwd())
    backend: Backend = variants.LAUNCHERS.load(config.launch.name)()
    plan = backend.plan(made)
    problems = backend.check(made) if ask else []
    if problems:
        raise ConfigError(problems)
    return plan


def spec(run: RunDir, attempt: int, config: Config) -> LaunchSpec:
    """What to launch, from the frozen config and where the run was created."""
    # The plan, not the config: a run may go on with another number of ranks.
    world_size = int(read_json(run.plan)["world_size"])
    return _spec(run, attempt, config, world_size, working_folder(run))


def _spec(run: RunDir, attempt: int, config: Config, world_size: int, cwd: Path) -> LaunchSpec:
    processes = max(1, world_size // config.launch.nodes)
    return LaunchSpec(
        run=run.path,
        attempt=attempt,
        python=sys.executable,
        cwd=cwd,
        options=config.launch,
        cluster=config.cluster,
        nodes=config.launch.nodes,
        processes=processes,
        threads=_threads(config, processes),
        folders=_folders(config, cwd),
    )


def _threads(config: Config, processes: int) -> int:
    if config.train.threads:
        return config.train.threads
    if config.launch.name == "slurm":  # the CPUs of this machine say nothing about the nodes'
        return config.cluster.cpus_per_rank or 1
    return max(1, cpu_count() // processes)


def _folders(config: Config, cwd: Path) -> tuple[Path, ...]:
    """Existing folders besides run and cwd that the ranks read or write."""
    names = [config.model.name, config.data.cache]
    names += [path for split in items.splits(config) for path in items.paths(config, split)]
    # Of a glob, the folder before the first wildcard.
    paths = [cwd / re.split(r"[^/]*[*?\[]", name)[0] for name in names if name]
    found = [path for path in paths if path.exists()]
    folders = [path if path.is_dir() else path.parent for path in found]
    return (*(path.resolve() for path in folders), cache_dir(), hub_cache())


def working_folder(run: RunDir) -> Path:
    """Where relative paths of the config start: the folder in which the run was created."""
    cwd = (read_json(run.environment) or {}).get("cwd")
    return Path(cwd) if cwd and Path(cwd).is_dir() else Path.cwd()


def submit(
    run: RunDir,
    attempt: int,
    *,
    attached: bool,
    fitted: Callable[[LaunchSpec, Config], LaunchSpec] = lambda made, _: made,
) -> Backend:
    """Hand the attempt to its back end; a failure to do so is written to the run.

    An attached job ends with this process. `fitted` may keep it to a part of this machine.
    """
    try:
        config = compose.load(run.config)
        backend: Backend = variants.LAUNCHERS.load(config.launch.name)()
        made = fitted(spec(run, attempt, config), config)
        backend.submit(backend.plan(made), attached=attached)
    except KeyboardInterrupt:
        code = int(ExitCode.interrupted)
        run.set_status(State.cancelled, reason="interrupted before the start", exit_code=code)
        raise
    except Exception as error:
        code = int(getattr(error, "exit_code", ExitCode.internal))
        run.set_status(State.failed, reason=str(error), exit_code=code)
        raise
    return backend


def resumable(run: RunDir) -> RunDir:
    """The run, if there is something left to do; `ConfigError` if it has succeeded."""
    if run.status().state is State.succeeded:
        raise ConfigError(
            "the run has finished",
            where=str(run),
            hint="to train on, start a new run under another run.name",
        )
    return run
