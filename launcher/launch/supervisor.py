"""The local supervisor: `python -m launcher.launch.supervisor RUN ATTEMPT`.

It prepares the data, starts the ranks, forwards a wish to stop, says how the attempt ended, and
leaves no process behind. It has no console: whoever follows the run reads the run folder.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from launcher.core import processes
from launcher.core.errors import ExitCode, LauncherError
from launcher.core.files import read_json, too_many_processes, write_json
from launcher.core.rundir import RunDir, State
from launcher.core.runtime import environment_without_ranks
from launcher.launch import nodes, outcome
from launcher.launch.guard import Guard
from launcher.launch.local import END_NOW, STOP, prepare_log, supervisor_file
from launcher.launch.spec import LaunchPlan, job_file

_POLL_S = 0.05
#: Time for helpers of the ranks (a tracker's uploader) to end by themselves after the ranks.
_LEFTOVER_GRACE_S = 10.0


@dataclass(slots=True)
class Wishes:
    """What signals have asked for so far."""

    stop: bool = False
    end_now: bool = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """Signal handler: only notes the wish."""
        self.stop = True
        self.end_now = self.end_now or number == END_NOW


def main(argv: list[str]) -> int:
    """Supervise one attempt to its end; returns its exit code."""
    run, attempt = RunDir(argv[0]), int(argv[1])
    plan = LaunchPlan.from_json(read_json(job_file(run, attempt)))
    os.chdir(plan.cwd)
    wishes = Wishes()
    signal.signal(STOP, wishes.note)
    signal.signal(END_NOW, wishes.note)
    processes.adopt_orphans()
    before = run.status()
    if before.attempt > attempt or outcome.settled(before):
        return ExitCode.interrupted  # it began so slowly that nobody counts on it any more
    run.set_status(State.preparing, attempt=attempt)
    identity = {"pid": os.getpid(), "host": socket.gethostname(), "time": time.time()}
    write_json(supervisor_file(run, attempt), identity)
    try:
        code = _attempt(run, plan, wishes)
    except Exception as error:
        reason = str(too_many_processes(error) or f"supervisor: {error}")
        run.set_status(State.failed, reason=reason, exit_code=ExitCode.internal)
        raise
    finally:
        if plan.nodes:
            _close(run, plan)
        _sweep(wishes)
    return code


def _close(run: RunDir, plan: LaunchPlan) -> None:
    """Have the nodes end what still runs; how the attempt was settled stays the last word."""
    end = run.status()
    nodes.close(run, plan.attempt, len(plan.nodes))
    # A rank on another host may have reported a step more before it was ended.
    if run.status() != end:
        run.set_status(end.state, reason=end.reason, exit_code=end.exit_code)


def _attempt(run: RunDir, plan: LaunchPlan, wishes: Wishes) -> int:
    code = prepare(run, plan, wishes)
    if code != 0:
        return code
    ranks = _start(plan.command, plan, plan.log)
    code = _watch(ranks, wishes, _ranks(plan), _guard(run, plan))
    return outcome.of_ranks(run, plan, code, wishes.stop, wishes.end_now)


def prepare(run: RunDir, plan: LaunchPlan, wishes: Wishes) -> int:
    """Make base and data where they are missing; a failure or a stop is settled.

    Returns 0, or the exit code that stands in status.json.
    """
    for command in _preparations(run, plan):
        log = prepare_log(run, plan.attempt)
        code = _watch(_start(command, plan, log), wishes, _whole_tree)
        if code != 0 or wishes.stop:
            return outcome.of_preparation(run, code, log, wishes.stop, wishes.end_now)
    return ExitCode.ok


def _preparations(run: RunDir, plan: LaunchPlan) -> Iterator[tuple[str, ...]]:
    """Commands to run before the ranks: nothing where base and data are there already."""
    from launcher import bases, fingerprint
    from launcher.config.compose import compose

    config = compose.load(run.config)
    bases.freeze(run, config.model)
    if bases.is_missing(config.model):
        # In front of the interpreter may stand what runs it in a container.
        yield (*plan.prepare[:-3], "-m", "launcher.bases", str(run))
    try:
        prepared = fingerprint.is_prepared(run, config)
    except LauncherError:
        prepared = False  # the preparation finds the same problem and reports it
    if not prepared:
        yield plan.prepare


def _start(command: tuple[str, ...], plan: LaunchPlan, log: Path) -> subprocess.Popen[bytes]:
    environment = {**environment_without_ranks(), **plan.environment}
    return processes.start(command, log, environment, cwd=plan.cwd)


def _guard(run: RunDir, plan: LaunchPlan) -> Callable[[], None]:
    from launcher.config.compose import compose

    config = compose.load(run.config, runs_code=False)
    return Guard(run, plan.attempt, config.watchdog).look


def _watch(
    process: subprocess.Popen[bytes],
    wishes: Wishes,
    listeners: Callable[[int], list[int]],
    look: Callable[[], None] = lambda: None,
) -> int:
    """Wait for a process; a wish to stop goes as SIGTERM to its `listeners`. Returns its code.

    `look` is called every now and then and may end it.
    """
    told = False
    while process.poll() is None:
        look()
        if wishes.end_now:
            processes.kill_descendants()
        elif wishes.stop and not told:
            told = True
            for pid in listeners(process.pid) or [process.pid]:
                processes.send(pid, signal.SIGTERM)
        time.sleep(_POLL_S)
    return process.returncode


def _whole_tree(pid: int) -> list[int]:
    """A preparation and its helpers: there is no checkpoint to wait for."""
    return [pid, *processes.descendants(pid)]


def _ranks(plan: LaunchPlan) -> Callable[[int], list[int]]:
    """The ranks alone: told by a signal, the agent would give them 30 s and then kill."""
    has_agent = plan.processes > 1 and not plan.nodes
    return processes.children if has_agent else lambda pid: [pid]


def _sweep(wishes: Wishes) -> None:
    end = time.monotonic() + _LEFTOVER_GRACE_S
    while processes.descendants(os.getpid()) and time.monotonic() < end and not wishes.end_now:
        time.sleep(_POLL_S)
    left = processes.kill_descendants()
    if left:
        print(f"could not end processes {left}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
