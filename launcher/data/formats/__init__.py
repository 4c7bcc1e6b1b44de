"""Record formats: one raw record (a plain dict) in, one `Example` out. Pure, so tested with dicts.

A format is a class with `matches(record)` for detection and `read(record)`, which returns an
example or raises `BadRecord`. To add one: a file here, a row in `launcher.config.variants.FORMATS`,
a YAML in `conf/data/`, a test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from launcher.config.variants import FORMATS
from launcher.data.formats.base import BadRecord, Chat, Example, Pair, Text

__all__ = ["BadRecord", "Chat", "Example", "Format", "Pair", "Text", "detect", "rename"]

Record = Mapping[str, Any]


class Format(Protocol):
    """What a row of FORMATS names."""

    def matches(self, record: Record) -> bool:
        """Whether the record's keys are this format's."""

    def read(self, record: Record) -> Example:
        """The record as an example; `BadRecord` if it does not fit."""


def detect(records: Iterable[Record], columns: Mapping[str, str]) -> str:
    """Name of the format that most of `records` have.

    Raises `BadRecord`, saying what the first record looks like, when none has a known one.
    """
    formats = {name: FORMATS.load(name)() for name in FORMATS}
    votes: Counter[str] = Counter()
    first: Record | None = None
    for record in records:
        first = record if first is None else first
        renamed = {
            **record,
            **{want: record[have] for want, have in columns.items() if have in record},
        }
        found = (name for name, known in formats.items() if known.matches(renamed))
        votes.update([name] if (name := next(found, None)) else [])
    if votes:
        return votes.most_common(1)[0][0]
    keys = ", ".join(map(repr, first or {})) or "nothing"
    raise BadRecord(
        f"no known format has the fields of this record: {keys}",
        hint="name the format with data=chat, prompt, alpaca or text, and map columns, "
        "e.g. 'data.columns={prompt: question, completion: answer}'",
    )


def rename(record: Record, columns: Mapping[str, str]) -> Record:
    """The record with the fields that `data.columns` maps; `BadRecord` if a column is missing."""
    if not columns:
        return record
    for want, have in columns.items():
        if have not in record:
            raise BadRecord(
                f"no column {have!r}, which data.columns maps to {want!r}; "
                f"there are: {', '.join(map(repr, record))}",
                hint="correct data.columns",
            )
    return {**record, **{want: record[have] for want, have in columns.items()}}
