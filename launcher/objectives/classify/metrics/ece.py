"""Expected calibration error: does a probability of 80 % come true in 80 % of cases?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from launcher.evals.metric import Floats, Metric
from launcher.objectives.classify.records import ClassRecord

BINS = 15


class Ece(Metric[ClassRecord]):
    """Guo et al. (2017, arXiv:1706.04599): the gap between the largest probability and accuracy in
    15 bins of equal width, weighted by their records. Texts out of scope are left out: they have no
    class that a probability could be of."""

    name = "ece"
    higher_is_better = False
    unit = "share"

    def statistics(self, records: Sequence[ClassRecord]) -> Floats:
        """[records, 1 + BINS]: whether it counts; in its bin, right (1 or 0) less probability."""
        found = np.zeros((len(records), 1 + BINS))
        for row, record in zip(found, records, strict=True):
            if not record.is_outside:
                # Bins are open below, as in the paper: (0, 1/15], (1/15, 2/15] ...
                finite = math.isfinite(record.probability)  # not those of a model that diverged
                place = max(1, math.ceil(record.probability * BINS)) if finite else 1
                row[0] = 1
                row[place] = float(record.predicted == record.truth) - record.probability
        return found

    def counts(self, statistics: Floats) -> npt.NDArray[np.bool_]:
        """Records in scope."""
        return np.asarray(statistics[:, 0] > 0)

    def scores(self, sums: Floats) -> Floats:
        """Sum over bins of |right - probability|, over records; NaN without records."""
        gaps = np.abs(sums[:, 1:]).sum(1)
        return np.divide(gaps, sums[:, 0], out=np.full(len(sums), np.nan), where=sums[:, 0] > 0)
