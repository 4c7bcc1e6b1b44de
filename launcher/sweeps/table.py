"""What came of the trials, as rows for tables, for programs and for the page."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.compose import compose, overrides
from launcher.core.errors import ConfigError, ExitCode
from launcher.core.files import storage_errors, write_atomic
from launcher.core.rundir import SWEEP_FILE, State, Status
from launcher.launch.outcome import settled
from launcher.sweeps.folder import PRUNED, Request, SweepDir, Trial, counted, may_pass, values

#: Ends that were not a trial's own, and what a sweep that has them ends with.
_STOPPED = ((State.preempted, ExitCode.preempted), (State.cancelled, ExitCode.interrupted))


@dataclass(frozen=True, slots=True)
class TrialRow:
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


def rows(sweep: SweepDir) -> list[TrialRow]:
    """All trials made so far, by number."""
    metric, found = sweep.request().metric, []
    for trial, status in sweep.states():
        measured = values(trial.run, metric)
        value = counted(trial.run, metric, measured)
        shown = max(status.step, measured[-1][0] if measured else 0)
        found.append(TrialRow(trial, status, trial.state(status), value, shown))
    return found


def best(request: Request, found: Sequence[TrialRow]) -> TrialRow | None:
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


def shown(words: Sequence[str]) -> str:
    """The same in a line of a listing, where a text of several lines is one."""
    return " ".join(pasted(words).splitlines())


def substituted(sweep: SweepDir, row: TrialRow) -> str:
    """A trial's overrides as `$(...)` in a shell hands them on, word for word.

    Such words are cut at blanks, and their quotes stay, so that overrides which need quotes are
    written into a file of the sweep folder, or of the current one where that path itself has
    blanks; its path stands for them.
    """
    if all(shlex.quote(word) == word for word in row.trial.words):
        return " ".join(row.trial.words)
    request = sweep.request()
    asked = overrides.read(row.trial.words, compose.Sources(request.config_dirs).options)
    said: dict[str, Any] = {"defaults": [{group: name} for group, name in asked.groups.items()]}
    if not asked.groups:
        del said["defaults"]
    path = sweep.path / "best.yaml"
    head = f"# The overrides of {sweep.name}/{row.name}, as a file of one's own.\n"
    with storage_errors(path):
        write_atomic(path, head + compose.dump_as_is(said | asked.values))
    inside = path.is_relative_to(Path.cwd())
    shown = str(path.relative_to(Path.cwd()) if inside else path)
    if shlex.quote(shown) == shown:
        return shown
    plain = Path(f"best-{sweep.name}.yaml").absolute()  # names of sweeps need no quotes
    with storage_errors(plain):
        write_atomic(plain, path.read_text(encoding="utf-8"))
    return f"./{plain.name}"


def text(request: Request, found: Sequence[TrialRow]) -> str:
    """The trials as a table, the best one marked, and how many are in which state."""
    winner = best(request, found)
    cells = [("TRIAL", "STATE", "STEP", request.metric.upper(), "OVERRIDES", "REASON")]
    for row in found:
        steps = f"/{row.status.steps}" if row.status.steps else ""
        reason = row.status.reason.partition("\n")[0]
        value = "" if row.value is None else f"{row.value:.6g}" + ("" if row.is_done else " so far")
        mark = "*" if row is winner else ""
        words = shown(row.trial.words)
        step = f"{row.step}{steps}" if row.step or steps else ""
        cells.append((f"{row.trial.number}{mark}", row.state, step, value, words, reason))
    return f"{_aligned(cells)}\n{summary(request, found)}"


def summary(request: Request, found: Sequence[TrialRow]) -> str:
    """How many trials are in which state, of how many that are planned."""
    counts: dict[str, int] = {}
    for row in found:
        counts[row.state] = counts.get(row.state, 0) + 1
    parts = [f"{count} {state}" for state, count in sorted(counts.items())]
    missing = (request.planned or 0) - len(found)
    if missing > 0:
        parts.append(f"{missing} to come")
    return ", ".join(parts) or "no trials yet"


def listing(root: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The sweeps directly under `root`, oldest first, as plain JSON values."""
    found = []
    for file in Path(root).glob(f"*/{SWEEP_FILE}"):
        sweep = SweepDir(file.parent)
        try:
            request = sweep.request()
        except ConfigError:
            continue  # of another version; `launcher sweep status` says so
        trials = rows(sweep)
        winner = best(request, trials)
        shown = None if winner is None else {"name": winner.name, "value": winner.value}
        entry = {"name": sweep.name, "path": str(sweep), "sweep": request.kind}
        more = {"metric": request.metric, "best": shown, "trials": summary(request, trials)}
        found.append((request.created, {**entry, **more}))
    return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]


def listed(sweeps: Sequence[dict[str, Any]]) -> str:
    """The same as text: one line a sweep."""
    cells = [("SWEEP", "KIND", "TRIALS", "BEST")]
    for entry in sweeps:
        winner = entry["best"]
        value = f"{winner['name']}: {entry['metric']} {winner['value']:.6g}" if winner else ""
        cells.append((entry["name"], entry["sweep"], entry["trials"], value))
    return _aligned(cells)


def _aligned(cells: Sequence[Sequence[str]]) -> str:
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in cells]
    return "\n".join(line.rstrip() for line in lines)


def again(found: Sequence[TrialRow]) -> int:
    """How many trials a resumed sweep tries again: stopped, not submitted, or failed by what is not
    their own fault."""
    return sum(row.status.state is State.preempted or may_pass(row.status) for row in found)


def exit_code(found: Sequence[TrialRow]) -> int:
    """The sweep's: 75 if trials were stopped or not submitted, so that it can be resumed, 130 if
    some were cancelled, then 0 if one has succeeded or may yet, else that of the first that failed.
    """
    if not all(settled(row.status) for row in found):
        return ExitCode.ok
    states = [row.status.state for row in found if row.state != PRUNED]
    for state, code in _STOPPED:
        if state in states:
            return code
    if State.succeeded in states:
        return ExitCode.ok
    codes = [row.status.exit_code for row in found if row.status.exit_code]
    own = [r.status.exit_code for r in found if r.status.exit_code and r.state != PRUNED]
    return next(iter([*own, *codes]), ExitCode.ok if found else ExitCode.internal)
