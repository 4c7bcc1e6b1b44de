"""Supervised fine-tuning: cross entropy on the target tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from launcher.config.schema import SftConfig


class Sft:
    """Cross entropy per target token (assistant turns, completions)."""

    def __init__(self, options: SftConfig) -> None:
        self.smoothing = options.label_smoothing

    def weight(self, row: Any) -> float:
        """Number of target tokens, each counted with the weight of its record."""
        return float(len(row.targets) if row.weights is None else row.weights.sum())

    def loss(self, head: Any, caller: Any, row: Any) -> Tensor:
        """Sum of the cross entropy over the row's targets, in nats."""
        loss: Tensor = head.loss(caller, row, self.smoothing)
        return loss
