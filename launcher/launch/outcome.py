"""How an attempt ended: what rank 0 wrote, or what can be told from the way the processes died."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import ExitCode
from launcher.launch.spec import LaunchPlan
from launcher.rundir import RunDir, State, Status

_FIRST = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")
_EVERY = re.compile(r"rank\s+: (\d+) \(local_rank: \d+\)\s+exitcode\s+: (-?\d+) \(pid: (\d+)\)")
_KILLED_BY_AGENT = re.compile(r"Unable to shutdown process (\d+) via")


@dataclass(frozen=True, slots=True)
class Death:
    """A rank's end: a negative code is the number of the signal that killed it."""

    rank: int
    code: int

    def __str__(self) -> str:
        if self.code >= 0:
            return f"rank {self.rank} ended with exit code {self.code}"
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = f"signal {-self.code}"
        text = f"rank {self.rank} was killed by {name}"
        if self.code == -signal.SIGKILL:
            text += " (the kernel does that when memory runs out: see `dmesg`)"
        return text


def of_ranks(run: RunDir, plan: LaunchPlan, code: int, stopped: bool, ended_now: bool) -> int:
    """Settle status.json after the ranks' end and return the run's exit code."""
    status = run.status()
    written = status.attempt == plan.attempt and settled(status)
    if written and status.state is State.succeeded:
        return ExitCode.ok
    if ended_now:
        return _settle(run, State.cancelled, "ended at once by the user", ExitCode.interrupted)
    death = cause(plan, code)
    if stopped:
        if written:
            return status.exit_code or ExitCode.ok
        if death is None or death.code in (-signal.SIGTERM, ExitCode.preempted):
            return _settle(run, State.preempted, "stopped before training", ExitCode.preempted)
    if written and not _is_echo(status, death):
        return status.exit_code or ExitCode.ok
    if death is None:
        return _settle(run, State.failed, "the ranks ended without a result", ExitCode.internal)
    return _settle(run, State.failed, f"{death}; see {_log_of(run, plan, death)}", _class(death))


def of_preparation(run: RunDir, code: int, log: Path, stopped: bool, ended_now: bool) -> int:
    """Settle status.json after a preparation that failed or was stopped."""
    if ended_now:
        return _settle(run, State.cancelled, "ended at once by the user", ExitCode.interrupted)
    if stopped:
        return _settle(run, State.preempted, "stopped before training", ExitCode.preempted)
    said = log.read_text(errors="replace").strip().splitlines()[-8:]
    reason = "data preparation failed: " + "\n".join(said)
    if code < 0:
        reason = f"data preparation: {str(Death(0, code)).removeprefix('rank 0 ')}"
    return _settle(run, State.failed, reason, _class(Death(0, code)))


def settled(status: Status) -> bool:
    """Whether a state says how an attempt ended."""
    return status.state.is_final or status.state is State.preempted


def cause(plan: LaunchPlan, code: int) -> Death | None:
    """The rank whose end brought the others down; None if all ended well or the agent is silent.

    A rank killed by a signal comes first: its peers' failures are echoes (a lost connection) that
    the agent may see in the same instant.
    """
    if code == 0:
        return None
    if plan.processes == 1:
        return Death(0, code)
    text = plan.log.read_text(errors="replace")
    stragglers = _KILLED_BY_AGENT.findall(text)
    deaths = [Death(int(r), int(c)) for r, c, pid in _EVERY.findall(text) if pid not in stragglers]
    killed = [d for d in deaths if d.code < 0 and d.code != -signal.SIGTERM]
    if killed:
        return killed[0]
    first = _FIRST.search(text)
    return Death(rank=int(first[2]), code=int(first[1])) if first else None


def _is_echo(status: Status, death: Death | None) -> bool:
    """Whether what rank 0 wrote is only its reaction to the end of another rank."""
    if death is None or death.code in (ExitCode.internal, ExitCode.preempted):
        return False
    if death.rank == 0 and death.code > 0:
        return False
    return status.state is State.preempted or status.exit_code == ExitCode.internal


def _class(death: Death) -> ExitCode:
    known = set(ExitCode) - {ExitCode.ok}
    return ExitCode(death.code) if death.code in known else ExitCode.internal


def _log_of(run: RunDir, plan: LaunchPlan, death: Death) -> Path:
    log = run.log(plan.attempt, death.rank)
    return log if log.is_file() and log.stat().st_size else plan.log


def _settle(run: RunDir, state: State, reason: str, code: ExitCode) -> int:
    run.set_status(state, reason=reason, exit_code=int(code))
    return int(code)
