"""What a classifier tells apart, as the run folder keeps it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from launcher.rundir import RunDir, read_json

#: Number of a record that belongs to no class; cross entropy passes over it.
OUT_OF_SCOPE = -1


@dataclass(frozen=True, slots=True)
class Classes:
    """The classes of a run, in the order of the head's outputs; kept as classes.json."""

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
    padding: int = 0
    """Token that fills up batches."""
    fresh: tuple[str, ...] = ()
    """Modules that the base model lacks: the head, and what else began at random."""
    seed: int = 0
    """Seed of their first weights."""
    new_head: bool = False
    """Whether the head begins at random although the base model has one."""

    @classmethod
    def of_run(cls, run: RunDir) -> Classes | None:
        """What the run has learned to tell apart; None if it is no classifier."""
        raw = read_json(run.classes)
        return None if raw is None else cls(**{**raw, "fresh": tuple(raw["fresh"])})

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
