"""Begin an attempt of a run: take its number under the run's lock, hand it to the back end."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from launcher import bases
from launcher.config import create
from launcher.config.compose import compose
from launcher.config.derive import data_entries
from launcher.config.schema import Config, variants
from launcher.core import runtime
from launcher.core.errors import ConfigError, ExitCode, LauncherError, StorageError
from launcher.core.files import read_json, storage_errors, too_many_processes
from launcher.core.rundir import RunDir, State, Status
from launcher.core.runtime import cache_dir, cpu_count, hub_cache
from launcher.launch.outcome import settled
from launcher.launch.queue import queue_of
from launcher.launch.retry import PATIENCE_S, BusyError, patiently
from launcher.launch.spec import Backend, LaunchPlan, LaunchSpec
from launcher.runs import extension, scheduled
from launcher.runs.status import is_live, not_submitted, observed_run


def refuse_in_rank(what: str) -> None:
    """Raise `ConfigError` in one of several tasks of a job, each of which would start a `what`."""
    ranks = runtime.ranks()
    if ranks.world_size == 1:
        return
    by = {"mpi": "mpirun"}.get(ranks.launched_by, ranks.launched_by)
    way = f"{by} -n {ranks.world_size} python"
    if by in ("torchrun", "deepspeed"):
        way = f"torchrun --nproc-per-node {ranks.local_world_size}"
    by_hand = f"; or start the ranks of one run yourself: `{way} -m launcher.train ...`"
    raise ConfigError(
        f"this process is rank {ranks.rank} of {ranks.world_size} ({by}), and each of them would"
        f" start a {what} of its own",
        where="launcher",
        hint=f"start it once, without {by}{by_hand if what == 'run' else ''}",
    )


def begin(run: RunDir, change: Callable[[], None] | None = None) -> int:
    """Claim the next attempt and return its number; `change` is made before, while nobody else
    works on the run.

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
        if change is not None:
            change()
        attempt = max(run.attempts(), default=0) + 1
        with storage_errors(run.path):
            run.attempt(attempt).mkdir(parents=True)
        run.set_status(State.preparing, attempt=attempt)
    return attempt


def _without_job(run: RunDir) -> Status:
    """The run's state; `StorageError` while a queue job works on it, or may do so."""
    status = run.status()
    held = scheduled.in_charge(run.path, status)
    if held is None:
        return status
    seen = scheduled.observed(run, status, held)
    if settled(seen):
        return seen
    said = f"{seen.state.value} in {scheduled.title(held)}: {seen.reason}"
    raise StorageError(
        f"job {held.job} of this run is {said}".rstrip(": "),
        where=str(run),
        hint=f"wait for it, or stop it with {run.command('cancel')}",
    )


def release_name(run: RunDir) -> Path | None:
    """Set a run aside that ended before its first step, so that a new one can have its name.

    Returns where it lies now; None if there is no such run, or it keeps its name.
    """
    if not run.exists():
        return None
    with run.lock():
        return None if _keeps_name(run) else create.set_aside(run)


def require_free(run: RunDir) -> None:
    """Raise `ConfigError` if a new run cannot have this name."""
    if run.path.exists() and (not run.exists() or _keeps_name(run)):
        raise create.taken(run)


def _keeps_name(run: RunDir) -> bool:
    return create.keeps_name(run, observed_run(run).state)


def rehearsed(
    run: RunDir, config: Config, world_size: int, *, ask: bool, patience_s: float = PATIENCE_S
) -> LaunchPlan:
    """What the first attempt of a run that is not made yet would submit.

    With `ask` the back end's scheduler is asked too, for `patience_s` seconds if it does not
    answer; `ConfigError` with all that it would refuse.
    """
    made = _spec(run, 1, config, world_size, Path.cwd())
    backend: Backend = variants.LAUNCHERS.load(config.launch.name)()
    plan = backend.plan(made)
    problems = patiently(lambda: backend.check(made), patience_s) if ask else []
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
        servers=config.rollout.apart,
        processes=processes,
        threads=_threads(config, processes),
        folders=_folders(config, cwd),
    )


def _threads(config: Config, processes: int) -> int:
    if config.train.threads:
        return config.train.threads
    if config.launch.has_queue:  # the CPUs of this machine say nothing about the nodes'
        return config.cluster.cpus_per_rank or 1
    return max(1, cpu_count() // processes)


def _folders(config: Config, cwd: Path) -> tuple[Path, ...]:
    """Existing folders besides run and cwd that the ranks read or write."""
    names = [config.model.name, config.data.cache]
    names += [
        path for split in data_entries.splits(config) for path in data_entries.paths(config, split)
    ]
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
    patience_s: float = PATIENCE_S,
) -> Backend:
    """Hand the attempt to its back end; a failure to do so is written to the run.

    An attached job ends with this process. `fitted` may keep it to a part of this machine. A
    scheduler that takes nothing is asked again for `patience_s` seconds.
    """
    try:
        config = compose.load(run.config)
        bases.freeze(run, config.model)
        backend: Backend = variants.LAUNCHERS.load(config.launch.name)()
        plan = backend.plan(fitted(spec(run, attempt, config), config))
        patiently(lambda: backend.submit(plan, attached=attached), patience_s)
    except KeyboardInterrupt as error:
        raise interrupted(run, error) from None
    except BusyError as error:
        note_not_submitted(run, attempt, error)
        problem, hint = error.problems[0], f"{run.command('resume')} tries again"
        queue = queue_of(config.launch.name)
        where = problem.where or (queue.title if queue else "launch")
        raise type(error)(problem.found, where=where, hint=hint) from error
    except Exception as error:
        code = int(getattr(error, "exit_code", ExitCode.internal))
        reason = str(too_many_processes(error) or error)
        run.set_status(State.failed, reason=reason, exit_code=code)
        raise
    return backend


def interrupted(run: RunDir, by: KeyboardInterrupt) -> KeyboardInterrupt:
    """What to raise where Ctrl-C or a signal came before an attempt was handed over; written to the
    run."""
    what, code = str(by) or "Ctrl-C", int(ExitCode.interrupted)
    run.set_status(State.cancelled, reason=f"{what} before its start", exit_code=code)
    resume = run.command("resume")
    return KeyboardInterrupt(f"{what}: {run.name} was not started; {resume} starts it")


def note_not_submitted(run: RunDir, attempt: int, error: LauncherError) -> None:
    """Write that a scheduler has not taken the attempt, as far as is known."""
    status, why = run.status(), error.problems[0].found
    if isinstance(error, BusyError) and error.is_open:
        # It stays queued: the job may be there, and is then found by its script.
        run.set_status(State.queued, attempt=attempt, reason=why)
        return
    found = not_submitted(status, why)
    run.set_status(found.state, attempt=attempt, reason=found.reason, exit_code=found.exit_code)


def resumable(run: RunDir) -> RunDir:
    """The run, if there is something left to do; `ConfigError` if it has succeeded."""
    if run.status().state is State.succeeded:
        raise extension.finished(run)
    return run
