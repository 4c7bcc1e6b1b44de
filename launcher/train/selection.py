"""Which evaluation was the best, and whether training is to end for want of progress.

The rule of patience follows Prechelt 1998, "Early Stopping - But When?". All of it is a function of
the scores alone, so that a resumed run decides as one that was never stopped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from launcher.config.derive import plan as plans
from launcher.config.schema import Config, EarlyStopConfig
from launcher.core.errors import DataError
from launcher.core.files import write_json
from launcher.core.rundir import RunDir
from launcher.evals.metric import Metric


@dataclass(slots=True)
class Found:
    """What the evaluations so far have shown; kept in every checkpoint."""

    step: int | None = None
    """Step of the best score, the first of equal ones; None as long as none was a number."""
    score: float | None = None
    """The best score."""
    counted: float | None = None
    """The score that the last progress was made to."""
    since: int = 0
    """Evaluations after it."""


@dataclass(slots=True)
class Selection:
    """The evaluations of a run by one metric."""

    options: EarlyStopConfig
    higher_is_better: bool
    keeps_best: bool
    """Whether the best weights are the run's result."""
    found: Found = field(default_factory=Found)

    def add(self, step: int, score: float | None) -> bool:
        """Count the score of `step`; returns whether it is the best so far. NaN is no progress."""
        found = self.found
        usable = score is not None and not math.isnan(score)
        if usable and self._gain(score, found.counted) >= max(self.options.min_change, math.ulp(0)):
            found.counted, found.since = score, 0
        else:
            found.since += 1
        is_best = usable and self._gain(score, found.score) > 0
        if is_best:
            found.step, found.score = step, score
        return is_best

    def _gain(self, score: Any, before: float | None) -> float:
        if before is None:
            return math.inf
        if score == before:  # the difference of infinities is none
            return 0.0
        return float(score - before if self.higher_is_better else before - score)

    @property
    def is_exhausted(self) -> bool:
        """Whether there was no progress for as many evaluations as there is patience."""
        patience = self.options.patience
        return patience is not None and self.found.since >= patience

    def told(self, step: int) -> str:
        """Why training ended at `step`, for people."""
        least = f" by {self.options.min_change:g}" if self.options.min_change else ""
        count = self.found.since
        text = f"stopped early at step {step}: eval.{self.options.metric} has not improved{least}"
        text += f" for {count} evaluation{'s' if count > 1 else ''}"
        best = self.found.step
        return text + ("; it never was a number" if best is None else f"; best at step {best}")

    def write(self, run: RunDir, *, stopped: int | None = None, result: int | None = None) -> None:
        """Keep eval/best.json: the best so far, where training was `stopped` early, and the step
        whose weights are the `result`."""
        found = self.found
        content = {"metric": self.options.metric, "higher_is_better": self.higher_is_better}
        content |= {"weights": "best" if self.keeps_best else "last"}
        score = str(found.score) if found.score in (math.inf, -math.inf) else found.score
        content |= {"step": found.step, "score": score, "stopped": stopped, "result": result}
        write_json(run.best, content)


def make(
    config: Config, metrics: Sequence[Metric[Any]] | None, state: Mapping[str, Any] | None
) -> Selection | None:
    """The selection of a run that asks for one; None for others.

    `metrics` are those that are measured, None without held-out records: `DataError` then. `state`
    is `Found` as a checkpoint holds it.
    """
    stop, keeps_best = config.train.early_stop, plans.exports_best(config)
    if stop.patience is None and not keeps_best:
        return None
    if metrics is None:
        key = "export.weights" if stop.patience is None else "train.early_stop.patience"
        hint = "give data.validation, or a larger data.validation_share"
        raise DataError("no record is held out to choose by", where=key, hint=hint)
    metric = next(metric for metric in metrics if metric.name == stop.metric)
    return Selection(stop, metric.higher_is_better, keeps_best, Found(**(state or {})))


def state_of(selection: Selection | None) -> dict[str, Any] | None:
    """What a checkpoint holds."""
    return None if selection is None else asdict(selection.found)
