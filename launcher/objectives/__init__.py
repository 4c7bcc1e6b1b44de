"""Objectives: what is learned from a row. One file each.

An objective turns a row and a model into a loss *sum* and says the row's weight; the training loop
owns normalisation (it reduces the weight over ranks and micro-batches once a step and divides).
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor


class Objective(Protocol):
    """The seam that every objective fills."""

    def weight(self, row: Any) -> float:
        """What the loss sum of this row is divided by, summed over the global batch."""
        ...

    def loss(self, head: Any, caller: Any, row: Any) -> Tensor:
        """Loss sum of one row: fp32 scalar with gradients, not divided by anything."""
        ...
