"""Kinds of examples: what formats make of records, and what objectives learn from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: kind -> what it is called.
KINDS = {
    "answers": "answers",
    "texts": "plain text",
    "labels": "classes of texts",
    "pairs": "pairs of a better and a worse answer",
    "ranked": "answers by rank",
    "unpaired": "answers that are good or bad",
}
#: kind -> the kind that examples of it are made into for an objective that does not take them.
MADE_INTO = {"ranked": "pairs", "pairs": "unpaired"}


@dataclass(frozen=True, slots=True)
class FormatRow:
    """A record format, and what must be known of it before its code is imported."""

    path: str
    """`module:attribute` of its class."""
    kind: str
    """Which of `KINDS` its examples are."""


def readable(learns: Iterable[str]) -> frozenset[str]:
    """The kinds from which an objective learns that takes `learns`."""
    found = set(learns)
    for kind in ("pairs", "ranked"):
        if MADE_INTO[kind] in found:
            found.add(kind)
    return frozenset(found)
