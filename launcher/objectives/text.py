"""Continued pre-training: cross entropy on every token."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from launcher.config.schema import TextConfig


class Text:
    """Cross entropy per token; `prepare` marks every token as a target."""

    def __init__(self, options: TextConfig) -> None:
        self.options = options

    def weight(self, row: Any) -> float:
        """Number of target tokens, each counted with the weight of its record."""
        return float(len(row.targets) if row.weights is None else row.weights.sum())

    def loss(self, head: Any, caller: Any, row: Any) -> Tensor:
        """Sum of the cross entropy over the row's targets, in nats."""
        loss: Tensor = head.loss(caller, row)
        return loss
