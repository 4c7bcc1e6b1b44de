"""What a line of a training file holds: one row a kind of examples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ExampleKind:
    """A kind of examples."""

    fault: Callable[[Record], str]
    """What is wrong with one, to be read after "Example 3"; empty if nothing is."""
    objects: Callable[[Record], Iterator[tuple[str, Record, Collection[str]]]]
    """Of a checked one, what stands around its messages: what it is called, the object, and the
    members that are known there."""
    messages: Callable[[Record], Iterable[Record]]
    """All messages of a checked one."""
