"""`launch=local`: the ranks run on this host, looked after by a supervisor process of their own."""

from __future__ import annotations

import signal
import socket
import time
from pathlib import Path

from launcher import entry
from launcher.core import processes
from launcher.core.errors import ConfigError, LauncherError, Problem
from launcher.core.files import read_json, storage_errors, write_json
from launcher.core.rundir import RunDir
from launcher.core.runtime import child_environment
from launcher.launch.retry import BusyError
from launcher.launch.spec import AttemptState, LaunchPlan, LaunchSpec, job_file

#: Signals that the supervisor understands.
STOP = signal.SIGTERM
END_NOW = signal.SIGINT
#: Longest wait for a supervisor that begins; a machine with much more work than CPUs needs some.
START_TIMEOUT_S = 60.0


class SlowStartError(BusyError):
    """A supervisor has not begun in time, and is ended: nothing runs."""

    is_open = False


class LocalBackend:
    """Ranks of this host: one directly, several under torch's elastic agent."""

    outlives_follower = False

    def plan(self, spec: LaunchSpec) -> LaunchPlan:
        """Commands and environment; pure."""
        rank = (spec.module, str(spec.run), "--attempt", str(spec.attempt))
        python = entry.interpreter(spec.python)
        command: tuple[str, ...] = (*python, "-m", *rank)
        if spec.processes > 1:
            # One rank needs no rendezvous, so it is spared the 2 s that the agent takes to start.
            # By address: the host's own name need not resolve, in a container for one.
            here = ("--standalone", "--local-addr", "127.0.0.1")
            agent = ("-m", "torch.distributed.run", *here, "--max-restarts", "0")
            count = ("--nproc-per-node", str(spec.processes))
            command = (*python, *agent, *count, "--no-python", *command)
        return LaunchPlan(
            backend="local",
            run=spec.run,
            attempt=spec.attempt,
            cwd=spec.cwd,
            prepare=(*python, "-m", spec.prepare_module, str(spec.run)),
            command=command,
            environment={
                # Threads that spin while they wait make a busy machine 5 to 20 times slower.
                "OMP_WAIT_POLICY": "PASSIVE",
                **spec.environment,
                "OMP_NUM_THREADS": str(spec.threads),
                **entry.OUTPUT,
            },
            processes=spec.processes,
            log=RunDir(spec.run).attempt(spec.attempt) / "agent.log",
        )

    def check(self, spec: LaunchSpec) -> list[Problem]:
        """Nothing: there is no scheduler to ask."""
        return []

    def submit(self, plan: LaunchPlan, *, attached: bool) -> str:
        """Start the supervisor in its own session; returns its pid once it has taken over."""
        run = RunDir(plan.run)
        write_json(job_file(run, plan.attempt), plan.to_json())
        log = run.attempt(plan.attempt) / "supervisor.log"
        command = entry.command("launcher.launch.supervisor", str(run), str(plan.attempt))
        with storage_errors(log):
            supervisor = processes.start(
                command, log, child_environment(), ends_with_parent=attached
            )
        try:
            end = time.monotonic() + START_TIMEOUT_S
            while read_json(supervisor_file(run, plan.attempt)) is None:
                if supervisor.poll() is not None:
                    said = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                    raise LauncherError(f"the supervisor did not start: {said}", where=str(log))
                if time.monotonic() > end:
                    found = f"the supervisor did not start within {START_TIMEOUT_S:.0f} s"
                    raise SlowStartError(found, where=str(log))
                time.sleep(0.01)
        except BaseException:  # or it would begin after all, as nobody knows any more
            supervisor.kill()
            supervisor.wait()
            raise
        return str(supervisor.pid)

    def status(self, run: RunDir, attempt: int) -> AttemptState:
        """Whether the supervisor lives; unknown on another host."""
        raw = read_json(supervisor_file(run, attempt))
        if raw is None:
            return AttemptState.gone
        if raw["host"] != socket.gethostname():
            return AttemptState.unknown
        return (
            AttemptState.running if processes.alive(raw["pid"], raw["time"]) else AttemptState.gone
        )

    def logs(self, run: RunDir, attempt: int) -> list[Path]:
        """The log of the data preparation, then rank 0's."""
        return [prepare_log(run, attempt), run.log(attempt, 0)]

    def cancel(self, run: RunDir, attempt: int, *, now: bool) -> None:
        """Signal the supervisor; `ConfigError` if it runs on another host."""
        raw = read_json(supervisor_file(run, attempt))
        if self.status(run, attempt) is AttemptState.unknown:
            raise ConfigError(
                f"the run was started on host {raw['host']}",
                where=str(run),
                hint=f"on {raw['host']}: {run.command('cancel', anywhere=True)}",
            )
        if raw is not None and processes.alive(raw["pid"], raw["time"]):
            processes.send(raw["pid"], END_NOW if now else STOP)


def supervisor_file(run: RunDir, attempt: int) -> Path:
    """Pid, host and start time of an attempt's supervisor."""
    return run.attempt(attempt) / "supervisor.json"


def prepare_log(run: RunDir, attempt: int) -> Path:
    """Output of the data preparation."""
    return run.attempt(attempt) / "prepare.log"
