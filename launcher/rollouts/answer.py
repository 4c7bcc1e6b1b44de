"""A prompt that is asked, and an answer that was drawn to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Question:
    """One draw of an answer; what is drawn depends on the seed, the rollout and these numbers."""

    place: int
    """Which prompt of the rollout, from 0 on."""
    number: int
    """Which answer to it, from 0 on."""
    draw: int
    """How often the prompt at this place was replaced before."""
    record: int
    """The record of the training data that asks."""
    tokens: tuple[int, ...]
    """Token ids of the prompt."""
    reference: tuple[int, ...]
    """Token ids of the answer that the record has."""

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from others of the rollout."""
        return self.place, self.number


@dataclass(slots=True)
class ScoredAnswer:
    """An answer as it was drawn, and what became of it: a line of the journal."""

    place: int
    number: int
    draw: int
    record: int
    where: str
    """file:line of the record."""
    prompt: str
    text: str
    """The answer without special tokens, as it was graded."""
    cut: bool
    """Whether it was still going on at the largest number of tokens."""
    score: float | None
    """The grader's; None if it had none."""
    reward: float | None
    """The score less the penalty of its length; None for an answer that is left out."""
    advantage: float
    is_learned: bool
    sub_scores: dict[str, float | None]
    errors: list[str]
    prompt_tokens: list[int]
    tokens: list[int]
    """As they were drawn, the end token too."""
    sampler_log_probs: list[float]
    """Of each token by the distribution it was drawn from, before `top_p`."""
    log_probs: list[float] | None = None
    """Of each token by the trainer before the first update; None where that is the only one."""
    weight: float = 1.0
    """Weight of the record."""

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from others of the rollout."""
        return self.place, self.number
