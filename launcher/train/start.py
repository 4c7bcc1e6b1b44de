"""From process start to the training loop: join ranks, open the run folder, say how it ended."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.distributed import Store  # type: ignore[attr-defined]

from launcher import bases, entry, fingerprint
from launcher.config import create
from launcher.config.compose import compose
from launcher.config.schema import Config
from launcher.config.schema.launch import LaunchConfig
from launcher.core import runtime
from launcher.core.errors import (
    ConfigError,
    ExitCode,
    HangError,
    LauncherError,
    OutOfMemoryError,
    Preempted,
)
from launcher.core.files import read_json, storage_error, too_many_processes
from launcher.core.rundir import RunDir, State
from launcher.core.runtime import Ranks
from launcher.distributed import devices, rendezvous
from launcher.health import determinism
from launcher.health.watchdog import Watchdog, collective_timeout
from launcher.train import allocation, logs
from launcher.train.signals import StopFlag


def main(argv: list[str]) -> int:
    """Run one rank to its end; returns the exit code of `launcher.core.errors.ExitCode`."""
    ranks, stop = runtime.export_ranks(), StopFlag()
    stop.install()
    runtime.limit_heap_fragmentation()
    runtime.let_cuda_memory_grow()
    start = _Start(ranks, *_arguments(argv))
    start.is_direct = start.attempt is None
    if len(start.words) == 1 and RunDir(start.words[0]).exists():
        start.run = RunDir(start.words[0])
    if start.run is not None and start.attempt is not None:
        logs.redirect(start.run.log(start.attempt, ranks.rank))
    with contextlib.ExitStack() as resources:
        try:
            _require_docstrings()
            _run(start, stop, resources)
        except LauncherError as error:
            return _failed(start, error)
        except (torch.OutOfMemoryError, MemoryError) as error:
            return _failed(start, _out_of_memory(error))
        except Exception as error:
            known = too_many_processes(error) or determinism.refusal(error)
            if known is None and isinstance(error, OSError):
                known = storage_error(error)
            if known is not None:
                return _failed(start, known)
            traceback.print_exc()
            if allocation.is_failure(error):
                return _failed(start, _out_of_memory(error))
            return _failed(start, LauncherError(f"{type(error).__name__}: {error}"))
    return int(ExitCode.ok)


def _require_docstrings() -> None:
    """Raises `ConfigError` where Python has left them out: transformers builds classes of them."""
    if sys.flags.optimize > 1:
        raise ConfigError(
            "Python runs without docstrings, which transformers needs",
            where="PYTHONOPTIMIZE=2 or python -OO",
            hint="start it without: unset PYTHONOPTIMIZE",
        )


@dataclass(slots=True)
class _Start:
    """What this rank is to do; run and attempt may be known only once rank 0 has the folder."""

    ranks: Ranks
    words: list[str]
    attempt: int | None
    run: RunDir | None = None
    owned: bool = False
    """Whether this process holds the run, so that its status is its own to write."""
    is_direct: bool = False
    """Whether torchrun or another launcher started the ranks, without a supervisor of ours."""


def _arguments(argv: list[str]) -> tuple[list[str], int | None]:
    """(run folder or overrides, number after --attempt). deepspeed adds --local_rank=N."""
    words = [word for word in argv if not word.startswith("--local_rank")]
    if "--attempt" in words:
        at = words.index("--attempt")
        return words[:at] + words[at + 2 :], int(words[at + 1])
    return words, None


def _run(start: _Start, stop: StopFlag, resources: contextlib.ExitStack) -> None:
    ranks = start.ranks
    store = rendezvous.open_store(ranks, _join_timeout_s(start.run))
    device = devices.choose(ranks)
    rendezvous.announce(store, ranks, devices.facts(device))
    if ranks.is_main:
        with _announced(store, ranks):
            run = _open(start, stop, resources)
            config = compose.load(run.config)
            rendezvous.check_world(ranks, _planned_world(run))
            # Before a preparation that may take hours.
            places = rendezvous.await_all(store, ranks, config.launch.join_timeout_s)
            _require_planned_devices(run, config, places)
            if start.is_direct:
                _prepare(run, stop)
            rendezvous.tell_others(store, f"{start.attempt} {run}")
    else:
        run, attempt = _await_main(store)
        start.run, start.owned = run, True
        if start.attempt is None:
            start.attempt = attempt
            logs.redirect(run.log(attempt, ranks.rank))
        config = compose.load(run.config)
        rendezvous.check_world(ranks, _planned_world(run))
    assert start.attempt is not None
    bases.recall(run, config.model)  # only now: the preparation may have renewed it
    stop.wish = run.wish(start.attempt)
    _use_threads(config, ranks, device)
    if config.train.deterministic:
        determinism.require()
    with Watchdog(run, ranks, start.attempt, config.watchdog) as heart:
        warning = rendezvous.make_group(store, ranks, device, collective_timeout(config.watchdog))
        if warning and ranks.is_main:
            print(f"warning: {warning}", flush=True)
        from launcher.train.loop import Training, train

        # The command line has shown the plan of a new run.
        told = start.attempt == 1 and not start.is_direct
        if run.probe.exists():
            from launcher.train.probe import probe

            probe(Training(run, config, ranks, device, stop, heart, told=True))
        else:
            train(run, config, ranks, device, stop, heart, told=told)
        # Not after a failure: the peers may wait in a collective, and leaving waits for them.
        rendezvous.leave()


def _join_timeout_s(run: RunDir | None) -> float:
    """Longest wait for the rendezvous; the default as long as there is no config."""
    launch = compose.load(run.config, runs_code=False).launch if run else LaunchConfig()
    return launch.join_timeout_s


def _open(start: _Start, stop: StopFlag, resources: contextlib.ExitStack) -> RunDir:
    """Rank 0: make or open the run folder and hold it alone."""
    is_new = start.run is None
    if start.run is None:
        start.run = _made(start)
    run = start.run
    resources.enter_context(run.lock())
    if start.is_direct and not is_new:
        _refuse_finished(run)
        start.owned = True
        create.replan(run, start.ranks.world_size)
    start.owned = True
    if start.attempt is None:
        start.attempt = max(run.attempts(), default=0) + 1
    if start.is_direct:
        log = run.log(start.attempt, start.ranks.rank)
        resources.enter_context(logs.copied(log, stop.ask_for_lost_output))
        print(f"run folder: {run}", flush=True)
    run.set_status(State.preparing, attempt=start.attempt)
    return run


def _made(start: _Start) -> RunDir:
    """A new run, in the place of one of the same name that ranks started directly ended before its
    first step."""
    config, plan = create.checked(start.words, world_size=start.ranks.world_size)
    run = create.named(config, start.words)
    with contextlib.suppress(LauncherError):  # held, or unreadable: its name is taken
        if run.exists() and not compose.load(run.config, runs_code=False).launch.has_queue:
            with run.lock():
                if not create.keeps_name(run, run.status().state):
                    create.set_aside(run)
    return create.make(run, config, plan, start.words)


def _refuse_finished(run: RunDir) -> None:
    status = run.status()
    if status.state is State.succeeded:
        further = f"train.steps={2 * status.step}"
        raise ConfigError(
            "the run has finished",
            where=str(run),
            hint=f"{run.command('resume', more=[further], anywhere=True)} trains on",
        )


def _prepare(run: RunDir, stop: StopFlag) -> None:
    """Find or make base and data, in processes of their own and before any process group exists."""
    config = compose.load(run.config)
    bases.freeze(run, config.model)
    if bases.is_missing(config.model):
        _prepared_by("launcher.bases", run, stop)
    if not fingerprint.is_prepared(run, config):
        _prepared_by("launcher.data.prepare", run, stop)


def _prepared_by(module: str, run: RunDir, stop: StopFlag) -> None:
    command = entry.command(module, str(run))
    child = subprocess.Popen(command, env=runtime.environment_without_ranks())  # noqa: S603
    while (done := child.poll()) is None:
        if stop:
            child.terminate()
            child.wait()
            raise Preempted("stopped before training", where=str(run))
        time.sleep(0.05)
    if done:
        code = done if done in set(ExitCode) else ExitCode.internal
        error = LauncherError(f"{module} failed (see above)")
        error.exit_code = ExitCode(code)
        raise error


@contextlib.contextmanager
def _announced(store: Store, ranks: Ranks) -> Iterator[None]:
    """Tell the waiting ranks when rank 0 fails before they have joined."""
    try:
        yield
    except BaseException as error:
        code = error.exit_code if isinstance(error, LauncherError) else ExitCode.internal
        rendezvous.tell_failure(store, ranks, int(code), patient=not isinstance(error, HangError))
        raise


class _FollowedError(LauncherError):
    """Rank 0 failed and has said why; this rank only ends with the same code."""


def _await_main(store: Store) -> tuple[RunDir, int]:
    failed, text = rendezvous.await_main(store)
    if failed:
        error = _FollowedError("rank 0 failed before training")
        error.exit_code = ExitCode(int(text))
        raise error
    attempt, _, path = text.partition(" ")
    return RunDir(path), int(attempt)


def _planned_world(run: RunDir) -> int:
    return int(read_json(run.plan)["world_size"])


def _require_planned_devices(
    run: RunDir, config: Config, places: dict[int, dict[str, Any]]
) -> None:
    problems, notes = devices.judge(config, read_json(run.plan, {}), places)
    if problems:
        raise ConfigError(problems)
    for note in notes:
        print(f"warning: {note}", flush=True)


def _use_threads(config: Config, ranks: Ranks, device: torch.device) -> None:
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    elif device.type == "cpu" and not runtime.has_thread_setting():
        torch.set_num_threads(max(1, runtime.cpu_count() // ranks.local_world_size))


# ---- failures


def _failed(start: _Start, error: LauncherError) -> int:
    run, ranks = start.run, start.ranks
    if isinstance(error, _FollowedError):
        return int(error.exit_code)
    with contextlib.suppress(OSError):  # the state counts, also where nobody reads this
        print(_told(start, error), file=sys.stderr, flush=True)
    if run is None or not start.owned or not run.exists():
        return int(error.exit_code)
    before = run.status()
    # The first cause counts: what follows on other ranks are lost connections.
    if before.state is State.failed and error.exit_code is ExitCode.internal:
        return int(error.exit_code)
    if ranks.is_main or not isinstance(error, Preempted):
        state = State.preempted if isinstance(error, Preempted) else State.failed
        place = "" if ranks.is_main else f"rank {ranks.rank} on {ranks.host}: "
        with contextlib.suppress(LauncherError, OSError):
            reason = _told(start, error) if isinstance(error, Preempted) else f"{place}{error}"
            run.set_status(state, reason=reason, exit_code=int(error.exit_code))
    return int(error.exit_code)


def _told(start: _Start, error: LauncherError) -> str:
    if not isinstance(error, Preempted):
        return f"{type(error).__name__}: {error}"
    # Whoever follows the run says how it goes on.
    if start.run is None or not (start.is_direct and start.ranks.is_main):
        return str(error)
    return f"{error}\n  HINT: {start.run.command('resume')} goes on from there"


def _out_of_memory(error: BaseException) -> OutOfMemoryError:
    return allocation.error(str(error).splitlines()[0] if str(error) else type(error).__name__)
