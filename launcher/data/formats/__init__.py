"""Record formats: one raw record (a plain dict) in, one `Example` out. Pure, so tested with dicts.

A format is a class with `matches(record)` for detection and `read(record)`, which returns an
example or raises `BadRecord`. To add one: a file here, a row in
`launcher.config.schema.variants.FORMATS`, a YAML in `conf/data/`, a test.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from launcher import record_fields
from launcher.config.schema.variants import FORMATS
from launcher.core.errors import ConfigError
from launcher.data.formats.asked import format_of, question_in
from launcher.data.formats.base import (
    BadRecord,
    Chat,
    Example,
    Labelled,
    OpenQuestion,
    Pair,
    Preference,
    Ranked,
    Text,
    Unpaired,
    as_text,
    refuse,
)
from launcher.data.formats.classification import name_label
from launcher.data.formats.jsonfields import are_messages, decoded

__all__ = [
    "OpenQuestion",
    "BadRecord",
    "Chat",
    "Example",
    "Format",
    "Labelled",
    "Pair",
    "Preference",
    "Ranked",
    "Reader",
    "Text",
    "Unpaired",
    "detect",
    "load",
    "rename",
]

Record = Mapping[str, Any]

#: Weights of answers that are judged.
_TRUTHS = dict.fromkeys(record_fields.GOOD, 1.0) | dict.fromkeys(record_fields.BAD, 0.0)


class Format(Protocol):
    """What a row of FORMATS, or the class `Format` of a user's own file, must be."""

    def matches(self, record: Record) -> bool:
        """Whether the record's keys are this format's."""

    def read(self, record: Record) -> Example:
        """The record as an example; `BadRecord` if it does not fit."""


class Reader:
    """Reads raw records in one format, columns renamed and classes named; can be pickled."""

    def __init__(
        self,
        format_name: str,
        columns: Mapping[str, str],
        labels: Sequence[str] = (),
        *,
        asks: bool = False,
    ) -> None:
        """`asks`: a record that has no answer is a question."""
        self._options = (format_name, dict(columns), list(labels))
        self._asks = asks
        self._format = load(format_name)

    def __reduce__(self) -> Any:  # the class of a user's own file cannot be imported by name
        return partial(Reader, asks=self._asks), self._options

    def read(self, raw: Any) -> tuple[Example, float] | BadRecord:
        """The example and its weight, or why there is none."""
        if isinstance(raw, BadRecord):
            return raw
        name, columns, labels = self._options
        try:
            record = rename(raw, columns)
            if name in FORMATS:
                record = decoded(record, name)
                refuse(record_fields.refused(record, name), "field {!r}")
                _refuse_binary(record, name, self._format)
            record = without(record, [want for want, have in columns.items() if not have])
            if labels and "label" in record:
                record = {**record, "label": name_label(record["label"], labels)}
            asked = question_in(record, name) if self._asks and name in FORMATS else None
            weighs = getattr(self._format, "weighs", True)
            weight = _weight(record, columns) if weighs else 1.0
            return asked or self._format.read(record), weight
        except BadRecord as error:
            return error
        except Exception as error:
            if name in FORMATS:
                found = f"the record cannot be read as {name} ({type(error).__name__}: {error})"
                return BadRecord(found, hint="remove it, or set data.bad_records=skip")
            found = f"{name} fails on the record: {type(error).__name__}: {error}"
            return BadRecord(found, hint="mend the file, or raise its BadRecord for bad records")


def load(name: str) -> Format:
    """The format of a row of FORMATS, or of the user's own file if `name` ends in .py.

    Raises `ConfigError` for a name that is not known and a file that is none.
    """
    found = FORMATS.load(name)
    if not name.endswith(".py"):
        known: Format = found()
        return known
    try:
        own: Format = found()
    except Exception as error:
        raise ConfigError(
            f"the class Format in {name} cannot be made: {type(error).__name__}: {error}",
            where="data.format",
            hint="give a Python file with a class Format that has the method read(record)",
        ) from error
    if not callable(getattr(own, "read", None)):
        raise ConfigError(
            f"the class Format in {name} has no method read",
            where="data.format",
            hint="write `def read(self, record)`, which returns a Chat, Pair or Text",
        )
    return own


def _refuse_binary(record: Record, name: str, known: Format) -> None:
    """`BadRecord` if a field that format `name` reads is a binary column of a table."""
    reads = record_fields.reads(name)
    binary = (own for own, value in record.items() if isinstance(value, bytes) and own in reads)
    field = next(binary, None)
    if field is None:
        return
    way = f"to leave it aside: data.columns.{field}="
    try:
        known.read({own: value for own, value in record.items() if own != field})
    except BadRecord:
        way = f"to read another column: data.columns.{field}=COLUMN"
    raise BadRecord(
        f"column {field!r} is binary, not text", hint=f"{as_text(record[field])}; {way}"
    )


def _weight(record: Record, columns: Mapping[str, str]) -> float:
    """Weight of a record: 1 unless said. A column that is named for it may be of verdicts."""
    raw = record.get("weight")
    if "weight" in columns:
        raw = _TRUTHS.get(str(raw).strip().lower(), raw)
    if raw is None or raw == "":
        return 1.0
    try:
        weight = math.nan if isinstance(raw, bool) else float(raw)
    except (TypeError, ValueError, OverflowError):
        weight = math.nan
    if not 0 <= weight <= record_fields.MAX_WEIGHT:
        raise BadRecord(
            f"the record has weight {raw!r}",
            hint="a weight is a number from 0 to 1e6; if the field means something else, leave it "
            "aside: data.columns.weight=",
        )
    return weight


def detect(
    records: Iterable[Record],
    columns: Mapping[str, str],
    *,
    learns_all: bool = False,
    asks: bool = False,
) -> str:
    """Name of the format that most of `records` have.

    Where every token is learned (`learns_all`), a label beside a text is no answer to it; where
    the model answers (`asks`), a question needs none. Raises
    `BadRecord`, saying what the first record looks like, when none has a known one.
    """
    formats = {name: FORMATS.load(name)() for name in FORMATS}
    votes: Counter[str] = Counter()
    first: Record | None = None
    for record in records:
        first = record if first is None else first
        known_columns = {to: of for to, of in columns.items() if not of or of in record}
        renamed = rename(record, known_columns)
        renamed = decoded(renamed)
        found = (name for name, known in formats.items() if known.matches(renamed))
        name = next(found, None) or (format_of(renamed) if asks else None)
        votes.update([name] if name else [])
    if votes:
        name = votes.most_common(1)[0][0]
        return "text" if name == "classification" and learns_all else name
    raise _unlike(first or {}, columns)


#: The field by which a conversation is known, whatever is in it, and its format.
_TALKS = {"messages": "chat", "conversations": "sharegpt", "conversation": "sharegpt"}


def _unlike(record: Record, columns: Mapping[str, str]) -> BadRecord:
    """Why a record is of no known format."""
    for field, name in _TALKS.items():
        if field in record:  # it is meant to be one, so the format says what is wrong
            read = Reader(name, {to: of for to, of in columns.items() if of in record}).read(record)
            if isinstance(read, BadRecord):
                return read
    keys = ", ".join(map(repr, record)) or "nothing"
    found = f"no known format has the fields of this record: {keys}"
    talk = next((field for field in record if are_messages(record[field])), None)
    if talk:
        return BadRecord(
            found, f"if {talk!r} is the conversation: data=chat 'data.columns={{messages: {talk}}}'"
        )
    known = record_fields.refused(record, "text")
    if known:
        name, meant = known
        hint = f"{name!r} is not read ({meant.what}): {meant.hint}"
    elif "completions" in record and "labels" in record:
        hint = "answers that are judged step by step cannot be learned: give prompt and completion"
    else:
        hint = (
            f"name the format with data={'|'.join(FORMATS)}, and map columns, "
            "e.g. 'data.columns={prompt: question, completion: answer}'"
        )
    return BadRecord(found, hint)


def rename(record: Record, columns: Mapping[str, str]) -> Record:
    """The record with the fields that `data.columns` maps, and without those mapped to nothing.

    A column that is read under another name does not stand under its own any more. `BadRecord` if
    a column is missing.
    """
    if not columns:
        return record
    for want, have in columns.items():
        if have and have not in record:
            raise BadRecord(
                f"no column {have!r}, which data.columns maps to {want!r}; "
                f"there are: {', '.join(map(repr, record))}",
                hint="correct data.columns",
            )
    gone = {*columns, *columns.values()}
    kept = {name: value for name, value in record.items() if name not in gone}
    return kept | {want: record[have] for want, have in columns.items() if have}


def without(record: Record, names: Sequence[str]) -> Record:
    """The record whose turns lack the members `names`."""
    if not names:
        return record

    def turn(raw: Any) -> Any:
        is_turn = isinstance(raw, dict)
        return {key: raw[key] for key in raw if key not in names} if is_turn else raw

    return {
        field: list(map(turn, value)) if isinstance(value, list) else value
        for field, value in record.items()
    }
