"""Begin an attempt of a run: take its number under the run's lock, hand it to the back end."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from launcher.config import compose, variants
from launcher.config.schema import Config
from launcher.errors import ConfigError, ExitCode, StorageError
from launcher.jobs.status import is_live
from launcher.launch.outcome import settled
from launcher.launch.spec import Backend, LaunchSpec
from launcher.rundir import RunDir, State, read_json, storage_errors
from launcher.runtime import cpu_count


def begin(run: RunDir) -> int:
    """Claim the next attempt and return its number.

    Raises `StorageError` if another process works on the run, or may do so on another host.
    """
    with run.lock():
        status = run.status()
        if status.attempt and is_live(status):
            raise StorageError(
                f"another process works on this run: host {status.host} pid {status.pid}",
                where=str(run),
                hint=f"wait for it, or stop it with `launcher cancel {run.name}`",
            )
        if not settled(status) and status.attempt and status.host != socket.gethostname():
            raise StorageError(
                f"the run is {status.state.value} on host {status.host}, as far as is known here",
                where=str(run),
                hint=f"run `launcher cancel {run.name}` there; if that host is gone for good, "
                f"`launcher cancel --lost {run.name}` here, then resume",
            )
        attempt = max(run.attempts(), default=0) + 1
        with storage_errors(run.path):
            run.attempt(attempt).mkdir(parents=True)
        run.set_status(State.preparing, attempt=attempt)
    return attempt


def spec(run: RunDir, attempt: int, config: Config) -> LaunchSpec:
    """What to launch, from the frozen config and where the run was created."""
    # The plan, not the config: a run may go on with another number of ranks.
    processes = max(1, int(read_json(run.plan)["world_size"]) // config.launch.nodes)
    return LaunchSpec(
        run=run.path,
        attempt=attempt,
        python=sys.executable,
        cwd=working_folder(run),
        options=config.launch,
        cluster=config.cluster,
        nodes=config.launch.nodes,
        processes=processes,
        threads=config.train.threads or max(1, cpu_count() // processes),
    )


def working_folder(run: RunDir) -> Path:
    """Where relative paths of the config start: the folder in which the run was created."""
    cwd = (read_json(run.environment) or {}).get("cwd")
    return Path(cwd) if cwd and Path(cwd).is_dir() else Path.cwd()


def submit(run: RunDir, attempt: int, *, attached: bool) -> Backend:
    """Hand the attempt to its back end; a failure to do so is written to the run.

    An attached job ends with this process.
    """
    try:
        config = compose.load(run.config)
        backend: Backend = variants.LAUNCHERS.load(config.launch.name)()
        backend.submit(backend.plan(spec(run, attempt, config)), attached=attached)
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
            hint="start a new run with `launcher train` to train on",
        )
    return run
