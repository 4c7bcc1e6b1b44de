"""What a model has in place of its LM head where it gives numbers for a whole sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

#: In the export of an adapter: `names` of the outputs of its head.
OUTPUTS = "classes.json"


@dataclass(frozen=True, slots=True)
class SequenceHead:
    """A head with one output for each of `names`, read at the end of a sequence or from its pool,
    as transformers' `AutoModelForSequenceClassification` has it."""

    names: tuple[str, ...]
    """Of the outputs, in their order."""
    problem: str
    """transformers' `problem_type`: what loss it would take."""
    padding: int = 0
    """Token that fills up batches."""
    fresh: tuple[str, ...] = ()
    """Modules that the base model lacks: the head, and what else began at random."""
    seed: int = 0
    """Seed of their first weights."""
    is_new: bool = False
    """Whether it begins at random although the base model has one."""

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> SequenceHead:
        """What `dataclasses.asdict` has made plain."""
        return cls(**{**kept, "names": tuple(kept["names"]), "fresh": tuple(kept["fresh"])})
