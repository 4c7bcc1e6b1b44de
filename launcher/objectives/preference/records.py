"""What a model makes of one held-out pair: what the metrics of preferences are computed from."""

from __future__ import annotations

from dataclasses import dataclass, field

from launcher.evals.records import Results


@dataclass(frozen=True, slots=True)
class PairRecord:
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


def pair_records(results: Results) -> list[PairRecord]:
    """What a model makes of the pairs; [] where none was asked."""
    return results.passes.get("pairs", [])
