"""The metric seam: a metric turns per-record results into a ratio of sums.

To add one: a file with a subclass, a row in `launcher.config.variants.METRICS`, a test.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from launcher.config.schema import EvalConfig
from launcher.config.variants import METRICS
from launcher.evals.records import Generation, LossRecord, Results

Floats = npt.NDArray[np.float64]
R = TypeVar("R", LossRecord, Generation)


class Metric(ABC, Generic[R]):
    """A score = transform(sum of numerators / sum of denominators) over records.

    Because only sums over records enter, the score is exact over ranks and can be resampled by
    record.
    """

    name: ClassVar[str]
    #: which pass gives its records: "loss" or "generation".
    needs: ClassVar[str]
    higher_is_better: ClassVar[bool]
    #: "share" for scores in 0..1 that people read as per cent, else "".
    unit: ClassVar[str] = ""

    def __init__(self, config: EvalConfig) -> None:
        self.config = config

    @abstractmethod
    def values(self, records: Sequence[R]) -> tuple[Floats, Floats]:
        """Numerators and denominators, float64 [records]; denominator 0: it does not count."""

    def transform(self, ratio: Floats) -> Floats:
        """The score of a ratio of sums, elementwise and monotone."""
        return ratio

    def score(self, records: Sequence[R]) -> float:
        """The score over all `records`; NaN if none of them counts."""
        numerators, denominators = self.values(records)
        return float(self.scores(numerators.sum(keepdims=True), denominators.sum(keepdims=True))[0])

    def scores(self, numerators: Floats, denominators: Floats) -> Floats:
        """Scores of several pairs of sums, elementwise; NaN where the denominator is 0."""
        ratio = np.full_like(numerators, np.nan)
        np.divide(numerators, denominators, out=ratio, where=denominators > 0)
        with np.errstate(over="ignore"):
            return self.transform(ratio)

    def select(self, results: Results) -> Sequence[R]:
        """The records of the pass that this metric needs."""
        chosen: Any = results.losses if self.needs == "loss" else results.generations
        return chosen


def make_metrics(config: EvalConfig) -> list[Metric[Any]]:
    """The metrics of `eval.metrics` in order, each once; `ConfigError` for an unknown name."""
    return [METRICS.load(name)(config) for name in dict.fromkeys(config.metrics)]


def score_all(metrics: Sequence[Metric[Any]], results: Results) -> dict[str, float]:
    """Name -> score, of the metrics whose pass was made."""
    return {
        metric.name: metric.score(metric.select(results))
        for metric in metrics
        if metric.select(results)
    }
