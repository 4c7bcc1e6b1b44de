"""What a classifier tells apart, as the run folder keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from launcher.model.sequence_head import SequenceHead
from launcher.objectives.classify.records import OUT_OF_SCOPE


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a run, in the order of the head's outputs."""

    names: list[str]
    multi_label: bool
    out_of_scope: str | None
    """Label of records without a class."""
    records: list[int]
    """Training records of each class."""
    usual: list[int]
    """The most frequent label in training: the numbers of its classes."""
    weights: list[float] | None
    """What the loss of each class is multiplied by."""
    seed: int = 0
    """Seed of the head's first weights."""
    new_head: bool = False
    """Whether the head begins at random although the base model has one."""

    def head(self, padding: int) -> SequenceHead:
        """The head that names them."""
        kind = "multi" if self.multi_label else "single"
        return SequenceHead(
            names=tuple(self.names),
            problem=f"{kind}_label_classification",
            padding=padding,
            seed=self.seed,
            is_new=self.new_head,
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    def text(self, numbers: Sequence[int]) -> str:
        """Names of classes by number, for people; -1 is out of scope."""
        return ", ".join(
            str(self.out_of_scope) if i == OUT_OF_SCOPE else self.names[i] for i in numbers
        )

    def numbers(self, labels: Iterable[str]) -> list[int]:
        """Numbers of the classes of these names, ascending; `KeyError` for one that is unknown."""
        known = {name: i for i, name in enumerate(self.names)}
        if self.out_of_scope is not None:
            known[self.out_of_scope] = OUT_OF_SCOPE
        return sorted(known[name] for name in labels)
