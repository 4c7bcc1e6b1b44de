"""A text compared with another, as a whole or in part."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from launcher.graders.grader import Grader, Setting
from launcher.graders.members import Members
from launcher.graders.sample import Sample

OPERATIONS: dict[str, Callable[[str, str], bool]] = {
    "eq": lambda text, reference: text == reference,
    "ne": lambda text, reference: text != reference,
    "like": lambda text, reference: reference in text,
    "ilike": lambda text, reference: reference.casefold() in text.casefold(),
}


class StringCheckGrader(Grader):
    """1 if the comparison holds, else 0: equal, not equal, or the reference is in the input, with
    or without regard to upper and lower case."""

    def __init__(self, members: Members, setting: Setting) -> None:
        """Read both texts and the operation."""
        super().__init__(members, setting)
        self._input = members.template("input")
        self._reference = members.template("reference")
        self._holds = OPERATIONS[members.choice("operation", tuple(OPERATIONS))]

    def score(self, item: Mapping[str, Any], sample: Sample) -> float:
        """1 or 0."""
        texts = self._input.fill(item, sample), self._reference.fill(item, sample)
        return float(self._holds(*texts))
