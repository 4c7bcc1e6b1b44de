"""Readers of text files: JSON lines, JSON lists, CSV, plain text."""

from __future__ import annotations

import codecs
import csv
import io
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO, cast

from launcher.core.jsontext import DECODER
from launcher.data.formats.base import BadRecord
from launcher.data.sources import limits
from launcher.data.sources.chunk import (
    Chunk,
    Parsed,
    grouped,
    looks_utf16,
    no_object,
    not_json,
    not_utf8,
    too_long,
)


def read_jsonl(stream: BinaryIO, file: int) -> Iterator[Chunk]:
    """Blocks of whole lines."""
    line, size, parts = 1, 0, list[bytes]()  # what is read of the line that is not at its end yet
    while block := stream.read(limits.CHUNK_BYTES):
        end = block.rfind(b"\n") + 1
        parts.append(block[:end] if end else block)
        size += len(parts[-1])
        if end:
            whole = b"".join(parts)
            yield Chunk(file, line, whole, num_bytes=size)
            line += whole.count(b"\n")
            parts, size = [block[end:]], len(block) - end
        elif size > limits.MAX_RECORD_BYTES:
            yield Chunk(file, records=((line, too_long("a line")),), num_bytes=size)
            parts = [_skip_line(stream)]
            line, size = line + 1, len(parts[0])
    if size:
        yield Chunk(file, line, b"".join(parts), num_bytes=size)


def _skip_line(stream: BinaryIO) -> bytes:
    """Read on to the end of the line; what was read beyond it."""
    while block := stream.read(limits.CHUNK_BYTES):
        if end := block.find(b"\n") + 1:
            return block[end:]
    return b""


def read_json(stream: BinaryIO, file: int) -> Iterator[Chunk]:
    """A JSON list, decoded item by item; a file of JSON lines called .json is read as such."""
    buffered = _buffered(stream)
    start = buffered.peek(4096)[:4096]
    if start.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"{"):
        yield from read_jsonl(buffered, file)
    elif looks_utf16(start):
        yield _utf16(file)
    else:
        yield from grouped(file, enumerate(_json_items(buffered), 1))


def _buffered(stream: BinaryIO) -> io.BufferedReader:
    return io.BufferedReader(cast(io.RawIOBase, stream), 1 << 16)


def _utf16(file: int) -> Chunk:
    found = "bytes of value 0 at its start: no UTF-8"
    hint = "the file looks like UTF-16: convert it to UTF-8, e.g. iconv -f UTF-16 -t UTF-8"
    return Chunk(file, records=((1, BadRecord(found, hint=hint)),))


def _text(stream: BinaryIO, newline: str | None = None) -> io.TextIOWrapper:
    # Invalid bytes become lone surrogates, which the record that holds them is refused for.
    return io.TextIOWrapper(stream, "utf-8-sig", errors="surrogateescape", newline=newline)


def _json_items(binary: BinaryIO) -> Iterator[Any]:
    """Items of the list in a JSON file, holding no more than the current one and a block."""
    decode, skip = DECODER.raw_decode, re.compile(r"[ \t\r\n]*").match
    with _text(binary) as stream:
        text, at, opening = stream.read(limits.CHUNK_BYTES), 0, "["
        while True:
            error = None
            try:
                at = skip(text, at).end()  # type: ignore[union-attr]
                if opening == "," and text.startswith("]", at):
                    return
                if not text.startswith(opening, at):
                    raise json.JSONDecodeError(f"Expecting {opening!r}", text, at)
                begin = skip(text, at + 1).end()  # type: ignore[union-attr]
                if opening == "[" and text.startswith("]", begin):
                    return
                value, end = decode(text, begin)
            except json.JSONDecodeError as caught:
                error, end = caught, len(text)
            except (ValueError, RecursionError) as caught:
                reason = not_json(caught)
                yield BadRecord(reason.found + "; what follows is not read", hint="mend the file")
                return
            # What ends with the text may go on in what is not read yet.
            if end >= len(text) and (more := stream.read(max(limits.CHUNK_BYTES, len(text) - at))):
                if len(text) - at > limits.MAX_RECORD_BYTES:
                    yield too_long("a record")
                    return
                text, at = text[at:] + more, 0
            elif error:
                yield BadRecord(
                    f"broken JSON from here on: {error.msg}",
                    hint="the file must be one list: [{...}, {...}]",
                )
                return
            else:
                yield value if isinstance(value, dict) else no_object(value)
                at, opening = end, ","


def read_csv(stream: BinaryIO, file: int) -> Iterator[Chunk]:
    """Rows by the names in the first line."""
    csv.field_size_limit(limits.MAX_RECORD_BYTES)
    buffered = _buffered(stream)
    if looks_utf16(buffered.peek(64)):
        yield _utf16(file)
        return
    with _text(buffered, newline="") as text:
        yield from grouped(file, _csv_rows(text))


def _csv_rows(stream: Iterable[str]) -> Iterator[Parsed]:
    reader = csv.DictReader(stream, strict=True)
    try:
        names = list(reader.fieldnames or ())
    except csv.Error as error:
        yield 1, BadRecord(f"broken CSV: {error}", hint="the first line must name the columns")
        return
    if len(set(names)) < len(names):
        name = next(name for name in names if names.count(name) > 1)
        found = f"two columns are called {name!r}"
        yield 1, BadRecord(found, hint="give each column a name of its own")
        return
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            line = reader.reader.line_num  # the DictReader's own counts whole rows only
            yield line, BadRecord(f"broken CSV: {error}", hint="mend the row")
            continue
        if row is None:
            return
        if None in row or None in row.values():
            found = f"the row does not have the {len(names)} fields of line 1"
            yield reader.line_num, BadRecord(found, hint="quote fields that hold commas")
        elif any("\0" in value for value in row.values()):
            yield reader.line_num, BadRecord("a NUL character", hint="is this a text file?")
        else:
            yield reader.line_num, row


def read_text(stream: BinaryIO, file: int) -> Iterator[Chunk]:
    """The whole file as one document."""
    parts, size = list[bytes](), 0
    while size <= limits.MAX_RECORD_BYTES and (block := stream.read(1 << 20)):
        parts.append(block)
        size += len(block)
    data = b"".join(parts)
    record: Any
    if len(data) > limits.MAX_RECORD_BYTES:
        record = too_long("a text file")
    elif b"\0" in data:
        hint = "the file looks like UTF-16: convert it to UTF-8" if looks_utf16(data) else ""
        record = BadRecord("a byte of value 0: no text", hint=hint or "is this a text file?")
    else:
        try:
            record = {"text": data.decode("utf-8-sig")}
        except UnicodeDecodeError as error:
            record = not_utf8(data, error)
    yield Chunk(file, records=((1, record),), num_bytes=len(data))
