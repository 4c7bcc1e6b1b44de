"""The sweep folder: what was asked for, and one run folder a trial inside it.

runs/NAME/sweep.json            the command line and what it says, frozen
runs/NAME/trial-0007/           a run folder like any other
runs/NAME/trial-0007/trial.json the overrides that are this trial's own; where it was pruned
runs/NAME/study.journal         Optuna's storage
runs/NAME/controller.log        what a controller in the background says
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError, ExitCode, did_you_mean
from launcher.core.files import read_json, write_json
from launcher.core.rundir import SWEEP_FILE, RunDir, State, Status
from launcher.launch.outcome import settled
from launcher.runs.scheduled import NEVER_BEGAN
from launcher.runs.status import ListedRun, observed_rows, observed_run
from launcher.sweeps.space import Dimension

VERSION = 1
PRUNED = "pruned"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Content of sweep.json: all that a controller needs to start or to go on."""

    words: tuple[str, ...]
    """The command line as typed."""
    config_dirs: tuple[str, ...]
    """Further folders of group options, absolute."""
    cwd: str
    """Where it was typed."""
    created: float
    """Unix time."""
    kind: str
    """grid, random, optuna, or the name of one of Hydra's sweepers."""
    metric: str
    """What trials are compared by."""
    maximize: bool
    """Whether higher values are better."""
    fixed: tuple[str, ...]
    """Overrides that all trials share."""
    swept: tuple[Dimension, ...]
    """What varies."""
    hydra: tuple[str, ...] = ()
    """Overrides of Hydra's own settings."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """The `sweep` section."""
    backend: str = "local"
    """Launch back end of the trials."""

    @property
    def planned(self) -> int | None:
        """Number of trials, where it is known beforehand."""
        if self.kind != "grid":
            trials = self.options.get("trials")
            return int(trials) if trials is not None else None
        return math.prod(len(dimension.values) for dimension in self.swept)

    def better(self, one: float, other: float) -> bool:
        """Whether the first value is the better one."""
        return one > other if self.maximize else one < other


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial's number, its own overrides and its run folder."""

    number: int
    run: RunDir
    words: tuple[str, ...]
    pruned: Mapping[str, Any] | None = None

    @property
    def file(self) -> Path:
        """trial.json."""
        return self.run.path / "trial.json"

    @property
    def is_torn(self) -> bool:
        """Whether a power cut has emptied files of a trial that was never started."""
        if self.run.attempts():
            return False
        files = (self.run.config, self.run.plan, self.run.environment, self.run.status_file)
        return any(file.exists() and not file.stat().st_size for file in files)

    def prune(self, step: int, value: float) -> None:
        """Write down that the trial was ended for falling behind."""
        write_json(self.file, content(self.number, self.words, {"step": step, "value": value}))

    def status(self) -> Status:
        """The run's state, as far as it can be true."""
        status = self.run.status()
        return observed_run(self.run) if status.attempt else status

    def state(self, status: Status) -> str:
        """The state for people: that of the run, or `pruned`."""
        ended = settled(status) and status.state is not State.succeeded
        return PRUNED if self.pruned and ended else status.state.value


class SweepDir:
    """Paths and trials of one sweep folder."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).resolve()

    def __str__(self) -> str:
        return str(self.path)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def file(self) -> Path:
        """sweep.json."""
        return self.path / SWEEP_FILE

    @property
    def journal(self) -> Path:
        """Optuna's storage."""
        return self.path / "study.journal"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.path / "report.html"

    @property
    def controller_log(self) -> Path:
        """What a controller in the background says."""
        return self.path / "controller.log"

    def trial_path(self, number: int) -> Path:
        """Folder of a trial."""
        return self.path / f"trial-{number:04d}"

    def exists(self) -> bool:
        """Whether this is a sweep folder."""
        return self.file.is_file()

    def write(self, request: Request) -> None:
        """Make the folder and its sweep.json."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_json(self.file, {"version": VERSION, **asdict(request)})

    def request(self) -> Request:
        """What was asked for; `ConfigError` if sweep.json cannot be read."""
        raw = read_json(self.file)
        try:
            assert raw.pop("version") == VERSION
            swept = tuple(Dimension(**{**d, "values": tuple(d["values"])}) for d in raw["swept"])
            lists = {key: tuple(raw[key]) for key in ("words", "config_dirs", "fixed", "hydra")}
            return Request(**{**raw, **lists, "swept": swept})
        except (AssertionError, AttributeError, TypeError, KeyError) as error:
            raise ConfigError(
                f"cannot be read: {error!r}",
                where=str(self.file),
                hint="it was damaged or written by another version; start the sweep anew",
            ) from error

    def states(self) -> list[tuple[Trial, Status]]:
        """All trials made so far with their states, for which a queue is asked once."""
        rows = [(trial, trial.run.status()) for trial in self.trials()]
        begun = [ListedRun(t.run.name, str(t.run), status) for t, status in rows if status.attempt]
        seen = {row.path: row.status for row in observed_rows(begun)}
        return [(trial, seen.get(str(trial.run), status)) for trial, status in rows]

    def trials(self) -> list[Trial]:
        """All trials made so far, by number."""
        found = []
        try:
            names = os.listdir(self.path)
        except OSError:
            names = []
        for name in names:
            number = name.removeprefix("trial-")
            if name.startswith("trial-") and number.isdecimal():
                trial = self.trial(int(number))
                if trial is not None:
                    found.append(trial)
        return sorted(found, key=lambda trial: trial.number)

    def trial(self, number: int) -> Trial | None:
        """One trial, or None if it has not been made."""
        path = self.trial_path(number)
        raw = read_json(path / "trial.json")
        if not isinstance(raw, dict):
            return None
        words = tuple(map(str, raw.get("overrides", ())))
        return Trial(number, RunDir(path), words, raw.get(PRUNED))


def may_pass(status: Status) -> bool:
    """Whether a trial has ended by what may be mended meanwhile: a full disk, a node that hangs or
    is lost, a kill, a queue that forgot it. Its own faults, such as its config or a loss that
    diverges, come again."""
    if status.state is not State.failed:
        return NEVER_BEGAN in status.reason
    return status.lost or status.exit_code in (ExitCode.hang, ExitCode.storage)


def content(
    number: int, words: Sequence[str], pruned: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What trial.json holds."""
    return {"number": number, "overrides": list(words), PRUNED: pruned}


def values(run: RunDir, metric: str) -> list[tuple[int, float]]:
    """(step, value) of every finite value of `metric` in metrics.jsonl, by step, last one wins."""
    found: dict[int, float] = {}
    try:
        lines = run.metrics.read_bytes().splitlines()
    except OSError:
        return []
    key = json.dumps(metric).encode()
    for line in lines:
        if key not in line:
            continue
        try:
            record = json.loads(line)
            step, value = record["step"], record[metric]
        except (ValueError, KeyError, TypeError):
            continue  # being written
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and math.isfinite(value) and isinstance(step, int):
            found[step] = float(value)
    return sorted(found.items())


def objective(trial: Trial, metric: str) -> float | None:
    """The value of `metric` that counts of a trial that has succeeded; else None."""
    status = trial.run.status()
    if status.exit_code != ExitCode.ok:
        return None
    return counted(trial.run, metric, values(trial.run, metric))


def counted(run: RunDir, metric: str, found: Sequence[tuple[int, float]]) -> float | None:
    """The one of `values` that counts: of the weights that the run exports where they were scored,
    else the last; None if there is none."""
    if not found:
        return None
    result = read_json(run.best, {}).get("result") if metric.startswith("eval/") else None
    scored = dict(found)
    return scored[result] if result in scored else found[-1][1]


def find(sweep: str, root: str = "runs") -> SweepDir:
    """The sweep folder at a path or of a name under `root`; else `ConfigError` with close names."""
    for path in (Path(sweep), Path(root) / sweep):
        if SweepDir(path).exists():
            return SweepDir(path)
    try:
        names = [entry.name for entry in os.scandir(root) if SweepDir(entry.path).exists()]
    except OSError:
        names = []
    raise ConfigError(
        f"no sweep {sweep!r} here or under {root}/",
        where="sweep",
        hint=did_you_mean(sweep, names)
        if names
        else f"there are no sweeps under {root}/: `launcher train -m` starts one",
    )
