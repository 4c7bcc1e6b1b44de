"""Supervised fine-tuning: cross entropy on the target tokens (assistant turns, completions)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from launcher.config.schema import SftConfig
from launcher.objectives.base import LossSum, Objective

if TYPE_CHECKING:
    from launcher.data.pack.loader import Row


class Sft(Objective):
    """Cross entropy per target token, with label smoothing (Szegedy et al. 2016, arXiv:1512.00567)
    by option."""

    options: SftConfig

    def loss(self, head: Any, caller: Any, row: Row) -> LossSum:
        """Sum of the cross entropy over the row's targets, in nats."""
        return LossSum(head.loss(caller, row, self.options.label_smoothing))
