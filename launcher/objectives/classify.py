"""Classification: cross entropy of a text's class, or of each class that may apply."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from launcher.config.schema import ClassifyConfig


class Classify:
    """Cross entropy per text (softmax), or the mean over classes of their own (sigmoid)."""

    def __init__(self, options: ClassifyConfig) -> None:
        self.options = options

    def weight(self, row: Any) -> float:
        """Number of texts, each counted with the weight of its record and its class."""
        return float(len(row.targets) if row.weights is None else row.weights.sum())

    def loss(self, head: Any, caller: Any, row: Any) -> Tensor:
        """Sum of the losses of the row's texts, in nats."""
        loss: Tensor = head.loss(caller, row)
        return loss
