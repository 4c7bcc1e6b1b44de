"""F1 of a classifier, over classes (macro) or over all decisions (micro)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from launcher.evals.metric import Floats, Metric
from launcher.objectives.classify.records import ClassRecord


class F1Macro(Metric[ClassRecord]):
    """Mean over classes of 2 TP / (2 TP + FP + FN); classes that never occur are left out.

    Out of scope counts as a class.
    """

    name = "f1_macro"
    higher_is_better = True
    unit = "share"

    def statistics(self, records: Sequence[ClassRecord]) -> Floats:
        """[records, 2 C]: for each class, whether it is rightly named; whether it is wrongly named
        or missed."""
        # Out of scope, -1, takes the first place.
        classes = 2 + max((i for r in records for i in (*r.answer, *r.truth)), default=-1)
        found = np.zeros((len(records), 2, classes))
        for row, record in zip(found, records, strict=True):
            answer, truth = set(record.answer), set(record.truth)
            row[0, [i + 1 for i in answer & truth]] = 1
            row[1, [i + 1 for i in answer ^ truth]] = 1
        return found.reshape(len(records), -1)

    def scores(self, sums: Floats) -> Floats:
        """Mean F1 of each row; NaN without any class."""
        right, wrong = np.split(sums, 2, axis=1)
        f1, occurs = _f1(right, wrong), right + wrong > 0
        total = np.full(len(sums), np.nan)
        np.divide(np.where(occurs, f1, 0).sum(1), occurs.sum(1), out=total, where=occurs.any(1))
        return total


class F1Micro(F1Macro):
    """The same from the counts of all classes together; with one class a text, the accuracy."""

    name = "f1_micro"

    def statistics(self, records: Sequence[ClassRecord]) -> Floats:
        """[records, 2]: how many classes are right; how many are wrong or missed."""
        each = super().statistics(records).reshape(len(records), 2, -1)
        total: Floats = each.sum(2)
        return total


def _f1(right: Floats, wrong: Floats) -> Floats:
    """`wrong` counts wrongly named and missed together."""
    score = np.zeros_like(right)
    np.divide(2 * right, 2 * right + wrong, out=score, where=right > 0)
    return score
