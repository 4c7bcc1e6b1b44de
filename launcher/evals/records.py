"""Results of one record: what every metric and every comparison is computed from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

#: Number of a record that belongs to no class; cross entropy passes over it.
OUT_OF_SCOPE = -1


@dataclass(frozen=True, slots=True)
class LossRecord:
    """The loss pass over one record: sums over its target tokens, which add up exactly.

    `loss_sum` is in nats, `correct` counts targets that were the model's first choice.
    """

    id: int
    loss_sum: float
    targets: int
    correct: int


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


@dataclass(frozen=True, slots=True)
class ClassRecord:
    """What a classifier makes of one record; classes by number, -1 is out of scope.

    Of the probabilities only the largest is kept: all that the metrics ask for.
    """

    id: int
    truth: list[int]
    """Its classes, ascending; [-1] for a text that belongs to none."""
    predicted: list[int]
    """The likeliest class; of several that may apply, those with more than 1/2."""
    probability: float
    """The largest probability."""
    rejected: bool = False
    """Whether the probability is below the threshold for texts in scope."""

    @property
    def answer(self) -> list[int]:
        """The classes that are named."""
        return [OUT_OF_SCOPE] if self.rejected else self.predicted

    @property
    def is_outside(self) -> bool:
        """Whether the text is out of scope in truth."""
        return self.truth == [OUT_OF_SCOPE]


class TokenizedPrompt(NamedTuple):
    """A prompt to be answered: token ids without padding, and the reference answer as text."""

    id: int
    tokens: list[int]
    reference: str
    where: str


@dataclass(frozen=True, slots=True)
class ValueRecord:
    """Numbers that an objective makes of one record, by name."""

    id: int
    values: dict[str, float]


#: Pass -> what it makes of a record.
PASSES: dict[str, type] = {
    "loss": LossRecord,
    "generation": Generation,
    "classes": ClassRecord,
    "values": ValueRecord,
}


@dataclass(slots=True)
class Results:
    """All results of one model, sorted by record id; the passes may cover different records."""

    passes: dict[str, list[Any]] = field(default_factory=dict)
    """Name of a pass, of `PASSES`, -> its records."""
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

    @property
    def classes(self) -> list[ClassRecord]:
        """The classes that were named."""
        return self.passes.get("classes", [])

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
