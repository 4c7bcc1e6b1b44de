"""What the reading process hands to workers: lines, records, or an Arrow batch still to parse."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from launcher.core.jsontext import DECODER, why_not
from launcher.data.formats.base import BadRecord, kind
from launcher.data.sources import arrow, limits

Parsed = tuple[int, Any]
"""Line (or record) number, and a record or the `BadRecord` that stands for it."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Consecutive records of one file: raw lines from `first_line` on, or records already
    parsed."""

    file: int
    first_line: int = 0
    lines: bytes = b""
    records: tuple[Parsed, ...] = ()
    num_bytes: int = 0
    arrow: bytes = b""
    """Rows as an Arrow stream, numbered from `first_line` on."""

    def parse(self) -> Iterator[Parsed]:
        """The records with their line numbers; blank lines are left out."""
        yield from self.records
        if self.arrow:
            yield from enumerate(arrow.rows(self.arrow), self.first_line)
        for number, line in enumerate(self.lines.split(b"\n"), self.first_line):
            if line.strip():
                yield number, parse_line(line)

    @property
    def is_blank(self) -> bool:
        """Whether there is no record in it."""
        return not (self.records or self.arrow or self.lines.strip())


def parse_line(line: bytes) -> Any:
    """The JSON value of a line, or the `BadRecord` that says why there is none."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return not_utf8(line, error)
    try:
        value = DECODER.decode(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        return nul_byte(line) if b"\0" in line else not_json(error)
    return value if isinstance(value, dict) else no_object(value)


def not_json(error: Exception) -> BadRecord:
    """Why a line is no JSON."""
    found, hint = why_not(error)
    return BadRecord(found, hint=hint)


def no_object(value: object) -> BadRecord:
    """A JSON value that is no record."""
    return BadRecord(
        f"the record is {kind(value)}, not an object", hint='write {"field": value, ...}'
    )


def looks_utf16(start: bytes) -> bool:
    """Whether a file that starts like this is UTF-16 or UTF-32."""
    return start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in start[:64]


def not_utf8(data: bytes, error: UnicodeDecodeError) -> BadRecord:
    """Bytes that are no text."""
    return BadRecord(
        f"invalid UTF-8: byte 0x{data[error.start]:02x} at position {error.start + 1}",
        hint="the file looks like UTF-16: " * looks_utf16(data)
        + "convert it to UTF-8, e.g. iconv -f ENCODING -t UTF-8",
    )


def nul_byte(line: bytes) -> BadRecord:
    """Bytes of value 0, which stand in no text."""
    utf16 = line.count(b"\0") * 3 > len(line.strip(b"\0"))
    return BadRecord(
        f"a byte of value 0 at position {line.index(0) + 1}",
        hint="the file looks like UTF-16: convert it to UTF-8, e.g. iconv -f UTF-16LE -t UTF-8"
        if utf16 and line.strip(b"\0")
        else "the file is damaged there, or is no text: mend or remove the line",
    )


def too_long(what: str) -> BadRecord:
    """More than one record may hold."""
    return BadRecord(
        f"{what} longer than {limits.MAX_RECORD_BYTES >> 20} MiB",
        hint="is this the right file? Cut longer documents into several records",
    )


def grouped(file: int, records: Iterator[Parsed]) -> Iterator[Chunk]:
    """Parsed records in chunks."""
    while group := tuple(islice(records, limits.CHUNK_RECORDS)):
        yield Chunk(file, records=group)
