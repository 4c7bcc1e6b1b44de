"""Types of numbers that are limited: a field of a config class says with its type what it may hold.

`rank: PositiveInt = 16`, or `micro: PositiveInt | None = None`; a limit of its own is written
`Annotated[int, Range(2)]`. To Python, OmegaConf and type checkers such a field is an int or a
float. Standard library only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin


@dataclass(frozen=True, slots=True)
class Range:
    """An interval; `open_low` and `open_high` leave the end itself out."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` is finite and inside."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:,}"
        if math.isinf(self.high):
            return low
        return f"{low} and {'below' if self.open_high else 'at most'} {self.high:,}"


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
PositiveFloat = Annotated[float, Range(0, open_low=True)]
NonNegativeFloat = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]
ShareAboveZero = Annotated[float, Range(0, 1, open_low=True)]
ShareBelowOne = Annotated[float, Range(0, 1, open_high=True)]
Seed = Annotated[int, Range(0, 2**32 - 1)]


def split(hint: Any) -> tuple[Any, Range | None]:
    """A field's type as Python has it, and the range that it states: None where it states none."""
    if get_origin(hint) is Annotated:
        return hint.__origin__, next(r for r in hint.__metadata__ if isinstance(r, Range))
    if get_origin(hint) is Union:
        plain, stated = zip(*map(split, get_args(hint)), strict=True)
        return Union[plain], next(filter(None, stated), None)  # noqa: UP007
    return hint, None
