"""What a model makes of one held-out pair: what the metrics of preferences are computed from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from launcher.evals.records import Results


class Rewarded:
    """What all records of pairs have in common: the rewards of both answers."""

    __slots__ = ()

    id: int
    reward_chosen: float
    reward_rejected: float
    tokens: list[int]

    @property
    def task(self) -> tuple[int, ...]:
        """The lengths of both answers."""
        return tuple(self.tokens)

    @property
    def margin(self) -> float:
        """By how much the chosen answer leads."""
        return self.reward_chosen - self.reward_rejected

    @property
    def is_right(self) -> bool:
        """Whether the chosen answer is preferred."""
        return self.margin > 0


@dataclass(frozen=True, slots=True)
class PairRecord(Rewarded):
    """Sums of log-probabilities in nats over each answer's tokens."""

    id: int
    chosen: float = field(metadata={"digits": 6})
    rejected: float = field(metadata={"digits": 6})
    reward_chosen: float = field(metadata={"digits": 6})
    """By how much the objective rewards each answer: what its loss compares."""
    reward_rejected: float = field(metadata={"digits": 6})
    tokens: list[int]
    """Learned tokens of both answers."""
    reference: list[float] | None = None
    """Both sums of the model before training; None for an objective without a reference."""
    divergence: float = field(default=math.nan, metadata={"digits": 6})
    """From the model before training, summed over the tokens of both answers; NaN where nothing is
    known of that."""


@dataclass(frozen=True, slots=True)
class RewardRecord(Rewarded):
    """What the head of a reward model gives both answers."""

    id: int
    reward_chosen: float = field(metadata={"digits": 6})
    reward_rejected: float = field(metadata={"digits": 6})
    tokens: list[int]
    """Learned tokens of both answers."""


def pair_records(results: Results) -> list[Any]:
    """What a model makes of the pairs; [] where none was asked."""
    return results.passes.get("pairs", [])
