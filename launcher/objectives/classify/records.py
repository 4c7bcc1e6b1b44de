"""What a classifier makes of one held-out record: what its metrics are computed from."""

from __future__ import annotations

from dataclasses import dataclass, field

from launcher.evals.records import Results

#: Number of a record that belongs to no class; cross entropy passes over it.
OUT_OF_SCOPE = -1


@dataclass(frozen=True, slots=True)
class ClassRecord:
    """The classes of one record by number, -1 is out of scope.

    Of the probabilities only the largest is kept: all that the metrics ask for.
    """

    id: int
    truth: list[int]
    """Its classes, ascending; [-1] for a text that belongs to none."""
    predicted: list[int]
    """The likeliest class; of several that may apply, those with more than 1/2."""
    probability: float = field(metadata={"digits": 6})
    """The largest probability."""
    rejected: bool = False
    """Whether the probability is below the threshold for texts in scope."""

    @property
    def task(self) -> list[int]:
        """Its classes."""
        return self.truth

    @property
    def answer(self) -> list[int]:
        """The classes that are named."""
        return [OUT_OF_SCOPE] if self.rejected else self.predicted

    @property
    def is_outside(self) -> bool:
        """Whether the text is out of scope in truth."""
        return self.truth == [OUT_OF_SCOPE]


def class_records(results: Results) -> list[ClassRecord]:
    """What a model has named; [] where nothing was asked."""
    return results.passes.get("classes", [])
