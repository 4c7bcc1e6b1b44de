"""How well the largest probability tells texts in scope from those out of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from launcher.evals.metric import Floats, Metric
from launcher.objectives.classify.records import ClassRecord

#: With more different probabilities than this, neighbours share a bin and count as equal: an error
#: of 1 in 512 at most.
BINS = 256


class Auroc(Metric[ClassRecord]):
    """Area under the ROC curve: how often a text in scope has a larger probability than one out of
    scope; equal ones count half (Hendrycks & Gimpel 2017, arXiv:1610.02136)."""

    name = "auroc"
    higher_is_better = True
    unit = "share"

    def statistics(self, records: Sequence[ClassRecord]) -> Floats:
        """[records, 2 BINS]: 1 at the bin of the probability, in scope or (second half) out."""
        values = np.array([record.probability for record in records])
        places = _ranks(values)
        found = np.zeros((len(records), 2 * BINS))
        outside = np.array([record.is_outside for record in records], dtype=np.int64)
        found[np.arange(len(records)), places + BINS * outside] = 1
        return found

    def scores(self, sums: Floats) -> Floats:
        """Share of pairs in the right order; NaN if one side is missing."""
        inside, outside = sums[:, :BINS], sums[:, BINS:]
        lower = np.cumsum(outside, axis=1) - outside / 2
        pairs = inside.sum(1) * outside.sum(1)
        right = (inside * lower).sum(1)
        return np.divide(right, pairs, out=np.full(len(sums), np.nan), where=pairs > 0)

    def counts(self, statistics: Floats) -> npt.NDArray[np.bool_]:
        """All records, if both kinds are there."""
        both = statistics[:, :BINS].any() and statistics[:, BINS:].any()
        return np.full(len(statistics), bool(both))

    def each(self, statistics: Floats) -> Floats:
        """Of each record, the share of the other side's records that it is in right order with."""
        inside, outside = (
            side.sum(0, keepdims=True) for side in (statistics[:, :BINS], statistics[:, BINS:])
        )
        below = (np.cumsum(outside) - outside / 2) / max(1, outside.sum())
        above = (inside.sum() - np.cumsum(inside) + inside / 2) / max(1, inside.sum())
        return statistics @ np.concatenate([below, above], axis=1)[0]


def _ranks(values: Floats) -> npt.NDArray[np.int64]:
    """Bin of each value, int [records] below BINS: its own for every value if there are few."""
    different, places = np.unique(values, return_inverse=True)
    if len(different) <= BINS:
        return places
    edges = np.quantile(values, np.arange(1, BINS) / BINS)
    return np.searchsorted(edges, values, side="right")
