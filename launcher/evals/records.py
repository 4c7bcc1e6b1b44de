"""Results of one record: what every metric and every comparison is computed from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from launcher.config.schema import ObjectiveConfig
from launcher.core.registry import load


class ScoredRecord(Protocol):
    """What a pass makes of one record; a frozen dataclass, whose fields are kept as JSON."""

    @property
    def id(self) -> int:
        """Its number."""

    @property
    def task(self) -> object:
        """What was asked: results of two models are compared where it is equal."""


@dataclass(frozen=True, slots=True)
class LossRecord:
    """The loss pass over one record: sums over its target tokens, which add up exactly.

    `loss_sum` is in nats, `correct` counts targets that were the model's first choice.
    """

    id: int
    loss_sum: float
    targets: int
    correct: int

    @property
    def task(self) -> int:
        """The number of target tokens."""
        return self.targets


@dataclass(frozen=True, slots=True)
class Generation:
    """The generated answer to one record's prompt; `where` is the record's file:line.

    `cut`: it was still going on at the largest number of tokens.
    """

    id: int
    where: str
    prompt: str
    reference: str
    answer: str
    cut: bool = False

    @property
    def task(self) -> str:
        """The reference answer."""
        return self.reference


class TokenizedPrompt(NamedTuple):
    """A prompt to be answered: token ids without padding, and the reference answer as text."""

    id: int
    tokens: list[int]
    reference: str
    where: str


def prompt_and_reference(
    tokens: Sequence[int], targets: Sequence[int]
) -> tuple[list[int], list[int]] | None:
    """Split a record before its last run of target tokens: what is asked, and the answer to it.

    `targets` is 1 where the token itself is learned. None if there is no target, or nothing before
    the first one (plain text). Tokens after the last target belong to neither.
    """
    learned = np.flatnonzero(np.asarray(targets))
    if not len(learned):
        return None
    end = int(learned[-1]) + 1
    context = np.flatnonzero(np.asarray(targets[:end]) == 0)
    if not len(context):
        return None
    start = int(context[-1]) + 1
    return [int(t) for t in tokens[:start]], [int(t) for t in tokens[start:end]]


@dataclass(frozen=True, slots=True)
class ValueRecord:
    """Numbers that an objective makes of one record, by name."""

    id: int
    values: dict[str, float]

    @property
    def task(self) -> None:
        """Nobody but the objective knows."""


#: Pass -> what it makes of a record; objectives may bring further ones.
PASSES: dict[str, type] = {"loss": LossRecord, "generation": Generation, "values": ValueRecord}


def passes(objective: ObjectiveConfig) -> dict[str, type]:
    """Pass -> what it makes of a record, with those that the objective brings."""
    return PASSES | {name: load(path) for name, path in objective.own_records.items()}


@dataclass(slots=True)
class Results:
    """All results of one model, sorted by record id; the passes may cover different records."""

    passes: dict[str, list[Any]] = field(default_factory=dict)
    """Name of a pass -> its records."""
    further: dict[str, Results] = field(default_factory=dict)
    """Results on other records than the held-out ones: `general`, `new.NAME`, and `train`."""

    @property
    def losses(self) -> list[LossRecord]:
        """The records of the loss pass."""
        return self.passes.get("loss", [])

    @property
    def generations(self) -> list[Generation]:
        """The generated answers."""
        return self.passes.get("generation", [])

    def ids(self) -> list[int]:
        """Ids of all records of all passes, ascending."""
        return sorted({record.id for records in self.passes.values() for record in records})

    def of(self, ids: Iterable[int]) -> Results:
        """The results of some records, without further sets."""
        wanted = set(ids)
        return Results(
            {
                name: [record for record in records if record.id in wanted]
                for name, records in self.passes.items()
            }
        )

    def cut(self) -> int:
        """How many answers were cut at the largest number of tokens."""
        return sum(record.cut for record in self.generations)
