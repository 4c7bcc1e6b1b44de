"""What came of the trials, as rows for tables, for programs and for the page."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launcher.errors import ExitCode
from launcher.rundir import Status
from launcher.sweeps.folder import Request, SweepDir, Trial, counted, values


@dataclass(frozen=True, slots=True)
class Row:
    """One trial: its state, and the value of the metric that counts, final if it has succeeded."""

    trial: Trial
    status: Status
    state: str
    value: float | None
    step: int

    @property
    def name(self) -> str:
        """The trial's folder."""
        return self.trial.run.name

    @property
    def is_done(self) -> bool:
        """Whether the value is that of a finished trial."""
        return self.status.exit_code == ExitCode.ok and self.value is not None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "trial": self.trial.number,
            "path": str(self.trial.run),
            "overrides": list(self.trial.words),
            "state": self.state,
            "value": self.value,
            "step": self.step,
            "exit_code": self.status.exit_code,
            "attempt": self.status.attempt,
            "reason": self.status.reason,
        }


def rows(sweep: SweepDir) -> list[Row]:
    """All trials made so far, by number."""
    metric, found = sweep.request().metric, []
    for trial, status in sweep.states():
        measured = values(trial.run, metric)
        value = counted(trial.run, metric, measured)
        shown = max(status.step, measured[-1][0] if measured else 0)
        found.append(Row(trial, status, trial.state(status), value, shown))
    return found


def best(request: Request, found: Sequence[Row]) -> Row | None:
    """The finished trial with the best value; the earlier one of equals."""
    winner = None
    for row in found:
        if not row.is_done or row.value is None:
            continue
        if winner is None or winner.value is None or request.better(row.value, winner.value):
            winner = row
    return winner


def pasted(words: Sequence[str]) -> str:
    """Overrides on one line, as a shell takes them."""
    return " ".join(shlex.quote(word) for word in words)


def text(request: Request, found: Sequence[Row]) -> str:
    """The trials as a table, the best one marked, and how many are in which state."""
    winner = best(request, found)
    cells = [("TRIAL", "STATE", "STEP", request.metric.upper(), "OVERRIDES", "REASON")]
    for row in found:
        steps = f"/{row.status.steps}" if row.status.steps else ""
        reason = row.status.reason.splitlines()[0][:100] if row.status.reason else ""
        value = "" if row.value is None else f"{row.value:.6g}" + ("" if row.is_done else " so far")
        mark = "*" if row is winner else ""
        words = pasted(row.trial.words)
        step = f"{row.step}{steps}" if row.step or steps else ""
        cells.append((f"{row.trial.number}{mark}", row.state, step, value, words, reason))
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join([*(line.rstrip() for line in lines), summary(request, found)])


def summary(request: Request, found: Sequence[Row]) -> str:
    """How many trials are in which state, of how many that are planned."""
    counts: dict[str, int] = {}
    for row in found:
        counts[row.state] = counts.get(row.state, 0) + 1
    parts = [f"{count} {state}" for state, count in sorted(counts.items())]
    missing = (request.planned or 0) - len(found)
    if missing > 0:
        parts.append(f"{missing} to come")
    return ", ".join(parts) or "no trials yet"
