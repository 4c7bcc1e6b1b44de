"""How far the scores of a grader agree with what people say of the same answers.

All figures follow from sums over records, so that their intervals come from resampled sums. With
o the share of equal labels and e that which two judges of these habits would have by chance,
Cohen's kappa (1960) is (o - e) / (1 - e).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from launcher.evals.comparison.paired import CONFIDENCE, UNSEEDED, Resampling
from launcher.evals.metric import Floats


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its 95 % interval; NaN where it has none, as of records that do not vary."""

    value: float
    low: float
    high: float


def estimate(
    columns: Floats, figure: Callable[[Floats], Floats], resampling: Resampling = UNSEEDED
) -> Estimate:
    """A figure of column sums: [records, K] and a function [rows, K] -> [rows]."""
    if not len(columns):
        return Estimate(np.nan, np.nan, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        value = float(figure(columns.sum(0, keepdims=True))[0])
        drawn = figure(resampling.sums(columns))
    known = drawn[np.isfinite(drawn)]
    if not len(known):
        return Estimate(value, np.nan, np.nan)
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(value, float(low), float(high))


def mean(sums: Sequence[float], counts: Sequence[float]) -> Estimate:
    """The mean over all answers, where each record has the sum of its answers' scores and their
    number: the answers to one item are not independent of each other."""
    columns = np.array([sums, counts], dtype=np.float64).T.reshape(-1, 2)
    return estimate(columns, lambda total: total[:, 0] / total[:, 1])


def of_labels(given: Sequence[str], human: Sequence[str]) -> dict[str, Estimate]:
    """Accuracy and Cohen's kappa."""
    known = sorted({*given, *human})
    one, other = (_one_hot(labels, known) for labels in (given, human))
    agrees = (one * other).sum(1, keepdims=True)
    columns = np.concatenate([agrees, one, other], axis=1)

    def kappa(sums: Floats) -> Floats:
        records = sums[:, 1 : 1 + len(known)].sum(1)
        observed = sums[:, 0] / records
        habits = sums[:, 1:].reshape(-1, 2, len(known)) / records[:, None, None]
        chance = habits.prod(1).sum(1)
        found: Floats = (observed - chance) / (1 - chance)
        return found

    return {
        "accuracy": estimate(columns, lambda sums: sums[:, 0] / sums[:, 1:].sum(1) * 2),
        "kappa": estimate(columns, kappa),
    }


def of_scores(given: Sequence[float], human: Sequence[float]) -> dict[str, Estimate]:
    """Pearson's and Spearman's correlation; ranks are those among all records."""
    values = np.array([given, human], dtype=np.float64)
    return {
        "pearson": _correlation(values),
        "spearman": _correlation(np.stack([_ranks(row) for row in values])),
    }


def _one_hot(labels: Sequence[str], known: Sequence[str]) -> Floats:
    return np.array([[label == one for one in known] for label in labels], dtype=np.float64)


def _correlation(values: Floats) -> Estimate:
    x, y = values - values.mean(1, keepdims=True)  # sums of squares then keep their digits
    columns = np.stack([np.ones_like(x), x, y, x * x, y * y, x * y], axis=1)

    def pearson(sums: Floats) -> Floats:
        n, sx, sy, sxx, syy, sxy = sums.T
        spread = (n * sxx - sx**2) * (n * syy - sy**2)
        found: Floats = np.where(spread > 0, (n * sxy - sx * sy) / np.sqrt(spread), np.nan)
        return found

    return estimate(columns, pearson)


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Ranks from 1 on; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return ranks
