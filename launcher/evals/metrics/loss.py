"""Held-out loss."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from launcher.evals.metric import Floats, Ratio
from launcher.evals.records import LossRecord


class Loss(Ratio[LossRecord]):
    """Mean cross entropy per target token, in nats."""

    name = "loss"
    higher_is_better = False

    def values(self, records: Sequence[LossRecord]) -> tuple[Floats, Floats]:
        """Loss sums and target counts, each [records]."""
        return (
            np.array([record.loss_sum for record in records], dtype=np.float64),
            np.array([record.targets for record in records], dtype=np.float64),
        )
