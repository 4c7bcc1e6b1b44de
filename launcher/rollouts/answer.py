"""A prompt that is asked, and an answer that was drawn to it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

#: How errors of environments begin.
ERROR = "environment_error: "


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
    turn: int = 0
    """How often the model has spoken before in answering it."""

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from others of the rollout."""
        return self.place, self.number

    @property
    def stream(self) -> tuple[int, ...]:
        """What tells the random numbers of its tokens from those of others of the rollout."""
        return self.draw, self.place, self.number, *([self.turn] if self.turn else ())


@dataclass(frozen=True, slots=True)
class Drawn:
    """The tokens of an answer, the one that ends it too, and their log-probabilities."""

    tokens: list[int]
    log_probs: list[float]
    ended: bool
    """Whether a token has ended it."""


@dataclass(slots=True)
class Episode:
    """How a question was answered, before it is graded."""

    question: Question
    """With the prompt as it was asked."""
    tokens: list[int] = field(default_factory=list)
    """All behind the prompt."""
    log_probs: list[float] = field(default_factory=list)
    """Of the drawn ones."""
    turns: list[list[int]] = field(default_factory=list)
    """[begin, end) among `tokens` of each drawn turn; empty where all are one."""
    cut: bool = False
    messages: list[dict[str, Any]] = field(default_factory=list)
    """What was said, where there is an environment."""
    text: str = ""
    """The last turn without special tokens."""
    score: float | None = None
    """The environment's."""
    errors: list[str] = field(default_factory=list)

    @property
    def longest(self) -> int:
        """Tokens of the longest turn."""
        return max((end - begin for begin, end in self.turns), default=len(self.tokens))


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
    """The answer without special tokens, as it was graded; of several turns the last."""
    cut: bool
    """Whether it was still going on at the largest number of tokens or turns."""
    score: float | None
    """The grader's, without one the environment's; None if there is none."""
    reward: float | None
    """The score less the penalty of its length; None for an answer that is left out."""
    advantage: float
    is_learned: bool
    sub_scores: dict[str, float | None]
    errors: list[str]
    prompt_tokens: list[int]
    tokens: list[int]
    """As they were drawn, the end token too; between turns what the environment said."""
    sampler_log_probs: list[float]
    """Of each drawn token by the distribution it was drawn from, before `top_p`."""
    log_probs: list[float] | None = None
    """Of each drawn token by the trainer before the first update; None where that is the only
    one."""
    teacher_log_probs: list[float] | None = None
    """Of each drawn token by the teacher, if there is one."""
    weight: float = 1.0
    """Weight of the record."""
    behind: int = 0
    """Optimizer steps between the weights that have drawn it and those that begin to learn."""
    turns: list[list[int]] = field(default_factory=list)
    """[begin, end) among `tokens` of what was drawn, turn by turn; empty where all of it was."""
    messages: list[dict[str, Any]] = field(default_factory=list)
    """The conversation, where there is an environment."""

    @property
    def drawn(self) -> list[list[int]]:
        """[begin, end) of what was drawn among `tokens`."""
        return self.turns or [[0, len(self.tokens)]]

    @property
    def length(self) -> int:
        """Drawn tokens."""
        return sum(end - begin for begin, end in self.drawn)

    @property
    def key(self) -> tuple[int, int]:
        """What tells it from others of the rollout."""
        return self.place, self.number
