"""Accuracy of a classifier: over all texts, over those in scope, and over those out of scope."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from launcher.evals.metric import Floats, Ratio
from launcher.objectives.classify.records import ClassRecord


class Accuracy(Ratio[ClassRecord]):
    """Share of texts whose classes are named exactly: all that apply, and no other.

    Out of scope counts as a class.
    """

    name = "accuracy"
    higher_is_better = True
    unit = "share"
    binary = True
    leads = True

    def values(self, records: Sequence[ClassRecord]) -> tuple[Floats, Floats]:
        """1 for each that is right, and 1 for each that counts, both [records]."""
        counts = np.array([self._is_counted(record) for record in records], dtype=np.float64)
        right = [record.answer == record.truth for record in records]
        return np.array(right, dtype=np.float64) * counts, counts

    def _is_counted(self, record: ClassRecord) -> bool:
        return True


class InScopeAccuracy(Accuracy):
    """The same over texts that have a class; one that is rejected is wrong (Larson et al. 2019)."""

    name = "in_scope_accuracy"
    leads = False

    def _is_counted(self, record: ClassRecord) -> bool:
        return not record.is_outside


class OosRecall(Accuracy):
    """Share of texts out of scope that are rejected (Larson et al. 2019)."""

    name = "oos_recall"
    leads = False

    def _is_counted(self, record: ClassRecord) -> bool:
        return record.is_outside
