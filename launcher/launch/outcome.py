"""How an attempt ended: what rank 0 wrote, or what can be told from the way the processes died."""

from __future__ import annotations

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import RunDir, State, Status
from launcher.launch.spec import LaunchPlan

#: Ends after which a new start may go better, by itself.
WORTH_A_REQUEUE = (ExitCode.preempted, ExitCode.hang)

_FIRST = re.compile(r"failed \(exitcode: (-?\d+)\) local_rank: (\d+)")
_EVERY = re.compile(r"rank\s+: (\d+) \(local_rank: \d+\)\s+exitcode\s+: (-?\d+) \(pid: (\d+)\)")
#: What torch's stores say of an address that they cannot listen at.
_TAKEN = re.compile(r"EADDRINUSE|address already in use", re.IGNORECASE)
_KILLED_BY_AGENT = re.compile(r"Unable to shutdown process (\d+) via")


@dataclass(frozen=True, slots=True)
class Death:
    """A rank's end: a negative code is the number of the signal that killed it."""

    rank: int | None
    """None for the agent of a host's ranks."""
    code: int

    @property
    def was_killed(self) -> bool:
        """Whether a signal ended it that was no wish to stop."""
        return self.code < 0 and self.code != -signal.SIGTERM

    @property
    def is_loss(self) -> bool:
        """Whether another has ended it at once, as who wants its memory: a new start may go better,
        which it may not after a crash of its own."""
        return self.code == -signal.SIGKILL

    def __str__(self) -> str:
        who = "torch's agent" if self.rank is None else f"rank {self.rank}"
        if self.code >= 0:
            return f"{who} ended with exit code {self.code}"
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = f"signal {-self.code}"
        text = f"{who} was killed by {name}"
        if self.code == -signal.SIGKILL:
            text += " (the kernel does that when memory runs out: see `dmesg`)"
        return text


def of_ranks(run: RunDir, plan: LaunchPlan, code: int, stopped: bool, ended_now: bool) -> int:
    """Settle status.json after the ranks' end and return the run's exit code."""
    return of_death(run, plan, cause(plan, code), stopped, ended_now)


def of_death(
    run: RunDir, plan: LaunchPlan, death: Death | None, stopped: bool, ended_now: bool
) -> int:
    """The same, where the cause of the end is known; None is an end without a bad one."""
    status = run.status()
    written = status.attempt == plan.attempt and settled(status)
    if written and status.state is State.succeeded:
        return ExitCode.ok
    if ended_now:
        return _settle(run, State.cancelled, "ended at once by the user", ExitCode.interrupted)
    if stopped:
        if written:
            return status.exit_code or ExitCode.ok
        if death is None or death.code in (-signal.SIGTERM, ExitCode.preempted):
            return _settle(run, State.preempted, "stopped before training", ExitCode.preempted)
    if written and not _is_echo(status, death):
        return status.exit_code or ExitCode.ok
    taken = None if death and death.was_killed else _taken_port(run, plan)
    if taken:
        return _settle(run, State.failed, taken, ExitCode.hang)
    if death is None:
        return _settle(run, State.failed, "the ranks ended without a result", ExitCode.internal)
    reason = f"{death}; see {_log_of(run, plan, death)}"
    return _settle(run, State.failed, reason, _class(death), lost=death.is_loss)


def _taken_port(run: RunDir, plan: LaunchPlan) -> str:
    """That the ranks could not meet because their port was another's, in a store's words; or ""."""
    folder = run.attempt(plan.attempt)
    for log in (plan.log, *sorted(folder.glob("node-*.log"))):
        text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
        said = [line for line in text.splitlines() if _TAKEN.search(line)]
        if said:
            return (
                f"the port at which the ranks meet is taken: {said[-1].strip()[:300]}\n"
                f"{run.command('resume', anywhere=True)} chooses another,"
                f" if launch.endpoint names none: {log}"
            )
    return ""


def of_preparation(run: RunDir, code: int, log: Path, stopped: bool, ended_now: bool) -> int:
    """Settle status.json after a preparation that failed or was stopped."""
    if ended_now:
        return _settle(run, State.cancelled, "ended at once by the user", ExitCode.interrupted)
    if stopped:
        return _settle(run, State.preempted, "stopped before training", ExitCode.preempted)
    said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-8:]
    # What it was about to do stands above.
    begin = next((i for i, line in enumerate(said) if line.startswith("error: ")), 0)
    reason = "data preparation failed: " + "\n".join(said[begin:]).removeprefix("error: ")
    death = Death(0, code)
    if code < 0:
        reason = f"data preparation: {str(death).removeprefix('rank 0 ')}"
    return _settle(run, State.failed, reason, _class(death), lost=death.is_loss)


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
    if plan.nodes:
        return first(_deaths(plan))
    if plan.processes == 1:
        return Death(0, code)
    found = of_agent(plan.log.read_text(encoding="utf-8", errors="replace"))
    return Death(None, code) if found is None and code == -signal.SIGKILL else found


def of_agent(text: str) -> Death | None:
    """The rank that torch's agent names in its log as the cause."""
    stragglers = _KILLED_BY_AGENT.findall(text)
    deaths = [Death(int(r), int(c)) for r, c, pid in _EVERY.findall(text) if pid not in stragglers]
    if any(death.was_killed for death in deaths):
        return first(deaths)
    # One line each time the agent has started the ranks: only the last start counts.
    every = list(_FIRST.finditer(text))
    if not every:
        return None
    found = every[-1]
    # Of the first failure the agent tells the local rank only.
    named = [death for death in deaths if death.code == int(found[1])]
    return named[0] if named else Death(rank=int(found[2]), code=int(found[1]))


def first(deaths: Sequence[Death]) -> Death | None:
    """The cause among ends that were seen in this order.

    An abort comes after every other signal: it is how gloo's and NCCL's threads end a rank that
    has lost its peer.
    """
    killed = [death for death in deaths if death.was_killed]
    others = [death for death in killed if death.code != -signal.SIGABRT]
    return next(iter([*others, *killed, *deaths]), None)


def _deaths(plan: LaunchPlan) -> list[Death]:
    raw = read_json(deaths_file(RunDir(plan.run), plan.attempt), [])
    return [Death(**death) for death in raw]


def deaths_file(run: RunDir, attempt: int) -> Path:
    """Ranks whose end brought their nodes down, in the order in which the coordinator saw it."""
    return run.attempt(attempt) / "deaths.json"


def _is_echo(status: Status, death: Death | None) -> bool:
    """Whether what rank 0 wrote is only its reaction to the end of another rank."""
    if death is None or death.code in (ExitCode.internal, ExitCode.preempted, -signal.SIGTERM):
        return False
    if death.rank == 0 and death.code > 0:
        return False
    return status.state is State.preempted or status.exit_code == ExitCode.internal


def _class(death: Death) -> ExitCode:
    known = set(ExitCode) - {ExitCode.ok}
    return ExitCode(death.code) if death.code in known else ExitCode.internal


def _log_of(run: RunDir, plan: LaunchPlan, death: Death) -> Path:
    log = plan.log if death.rank is None else run.log(plan.attempt, death.rank)
    return log if log.is_file() and log.stat().st_size else plan.log


def _settle(run: RunDir, state: State, reason: str, code: ExitCode, *, lost: bool = False) -> int:
    run.set_status(state, reason=reason, exit_code=int(code), lost=lost)
    return int(code)
