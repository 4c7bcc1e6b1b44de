"""Divergence from the teacher: of a held-out record, and as a metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from launcher.evals.metric import Floats, Ratio


@dataclass(frozen=True, slots=True)
class DivergenceRecord:
    """Summed over the target tokens of one record, in nats."""

    id: int
    divergence_sum: float
    targets: int

    @property
    def task(self) -> int:
        """The number of target tokens."""
        return self.targets


class TeacherDivergence(Ratio[DivergenceRecord]):
    """Mean divergence from the teacher per target token, in nats, as the loss measures it but for
    its factor."""

    name = "divergence"
    higher_is_better = False

    def values(self, records: Sequence[DivergenceRecord]) -> tuple[Floats, Floats]:
        """Divergence sums and target counts, each [records]."""
        return (
            np.array([record.divergence_sum for record in records], dtype=np.float64),
            np.array([record.targets for record in records], dtype=np.float64),
        )
