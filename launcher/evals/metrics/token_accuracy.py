"""Token accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from launcher.evals.metric import Floats, Ratio
from launcher.evals.records import LossRecord


class TokenAccuracy(Ratio[LossRecord]):
    """Share of target tokens that are the model's first choice after the true tokens before."""

    name = "token_accuracy"
    higher_is_better = True
    unit = "share"

    def values(self, records: Sequence[LossRecord]) -> tuple[Floats, Floats]:
        """Hits and target counts, each [records]."""
        return (
            np.array([record.correct for record in records], dtype=np.float64),
            np.array([record.targets for record in records], dtype=np.float64),
        )
