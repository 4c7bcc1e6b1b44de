"""Reading data files in bounded memory, as chunks that workers parse.

The reading process only finds line ends; parsing JSON is the workers' part. Whatever cannot be read
becomes a `BadRecord` in its place, so it is reported with file and line like any other.
"""

from __future__ import annotations

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

from launcher.data.formats.base import BadRecord, kind
from launcher.errors import ConfigError, DataError
from launcher.fingerprint import SUFFIXES, BuiltinData, HubData, Source

#: Bytes of lines, and number of parsed records, that one worker gets at a time.
CHUNK_BYTES = 1 << 18
CHUNK_RECORDS = 256
#: The longest line or text file; more than this is damage, or data that should be cut up first.
MAX_RECORD_BYTES = 64 << 20

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

    def parse(self) -> Iterator[Parsed]:
        """The records with their line numbers; blank lines are left out."""
        yield from self.records
        for number, line in enumerate(self.lines.split(b"\n"), self.first_line):
            if line.strip():
                yield number, parse_line(line)


def chunks(source: Source, file: int) -> Iterator[Chunk]:
    """All records of a source. Raises `DataError` for a file that cannot be read at all."""
    if isinstance(source, BuiltinData):
        source = make_builtin(source)
    if isinstance(source, HubData):
        yield from _grouped(file, enumerate(_hub_records(source), 1))
        return
    reader = _READERS.get(source.suffix.lower())
    if reader is None:
        raise DataError(
            f"files ending in {source.suffix or 'nothing'} are not known",
            where=str(source),
            hint=f"use one of {', '.join(SUFFIXES)}",
        )
    try:
        if source.stat().st_size == 0:
            raise DataError("the file is empty", where=str(source), hint="give a file with records")
        yield from reader(source, file)
    except OSError as error:
        raise DataError(
            f"cannot be read: {error.strerror or error}",
            where=str(source),
            hint="check path and permissions",
        ) from error


def make_builtin(source: BuiltinData) -> Path:
    """The file of a built-in data set, written at first use."""
    from launcher.data import builtin

    path = source.folder / f"{source.name}.{source.split}.jsonl"
    return path if path.is_file() else builtin.write(source.name, source.folder)[source.split]


def parse_line(line: bytes) -> Any:
    """The JSON value of a line, or the `BadRecord` that says why there is none."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        return _not_utf8(line, error)
    try:
        value = json.loads(text.removeprefix("\ufeff"))
    except json.JSONDecodeError as error:
        return BadRecord(
            f"broken JSON at column {error.colno}: {error.msg}",
            hint="every line must be one complete JSON object",
        )
    except (ValueError, RecursionError) as error:
        return BadRecord(f"JSON that cannot be read: {error}", hint="mend or remove the line")
    return value if isinstance(value, dict) else _no_object(value)


def _no_object(value: object) -> BadRecord:
    return BadRecord(
        f"the record is {kind(value)}, not an object", hint='write {"field": value, ...}'
    )


def _not_utf8(data: bytes, error: UnicodeDecodeError) -> BadRecord:
    utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or b"\0" in data[:64]
    return BadRecord(
        f"invalid UTF-8: byte 0x{data[error.start]:02x} at position {error.start + 1}",
        hint="the file looks like UTF-16: " * utf16
        + "convert it to UTF-8, e.g. iconv -f ENCODING -t UTF-8",
    )


def _too_long(what: str) -> BadRecord:
    return BadRecord(
        f"{what} longer than {MAX_RECORD_BYTES >> 20} MiB",
        hint="is this the right file? Cut longer documents into several records",
    )


def _read_jsonl(path: Path, file: int) -> Iterator[Chunk]:
    line, size, parts = 1, 0, list[bytes]()  # what is read of the line that is not at its end yet
    with open(path, "rb") as stream:
        while block := stream.read(CHUNK_BYTES):
            end = block.rfind(b"\n") + 1
            parts.append(block[:end] if end else block)
            size += len(parts[-1])
            if end:
                whole = b"".join(parts)
                yield Chunk(file, line, whole, num_bytes=size)
                line += whole.count(b"\n")
                parts, size = [block[end:]], len(block) - end
            elif size > MAX_RECORD_BYTES:
                yield Chunk(file, records=((line, _too_long("a line")),), num_bytes=size)
                parts = [_skip_line(stream)]
                line, size = line + 1, len(parts[0])
    if size:
        yield Chunk(file, line, b"".join(parts), num_bytes=size)


def _skip_line(stream: BinaryIO) -> bytes:
    """Read on to the end of the line; what was read beyond it."""
    while block := stream.read(CHUNK_BYTES):
        if end := block.find(b"\n") + 1:
            return block[end:]
    return b""


def _read_json(path: Path, file: int) -> Iterator[Chunk]:
    """A JSON list, decoded item by item; a file of JSON lines called .json is read as such."""
    with open(path, "rb") as stream:
        start = stream.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()
    if start.startswith(b"{"):
        yield from _read_jsonl(path, file)
    else:
        yield from _grouped(file, enumerate(_json_items(path), 1))


def _json_items(path: Path) -> Iterator[Any]:
    """Items of the list in a JSON file, holding no more than the current one and a block."""
    decode, skip = json.JSONDecoder().raw_decode, re.compile(r"[ \t\r\n]*").match
    # Invalid bytes become lone surrogates, which the record that holds them is refused for.
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as stream:
        text, at, opening = stream.read(CHUNK_BYTES), 0, "["
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
                yield BadRecord(f"JSON that cannot be read: {caught}", hint="mend the file")
                return
            # What ends with the text may go on in what is not read yet.
            if end >= len(text) and (more := stream.read(max(CHUNK_BYTES, len(text) - at))):
                if len(text) - at > MAX_RECORD_BYTES:
                    yield _too_long("a record")
                    return
                text, at = text[at:] + more, 0
            elif error:
                yield BadRecord(
                    f"broken JSON from here on: {error.msg}",
                    hint="the file must be one list: [{...}, {...}]",
                )
                return
            else:
                yield value if isinstance(value, dict) else _no_object(value)
                at, opening = end, ","


def _read_csv(path: Path, file: int) -> Iterator[Chunk]:
    csv.field_size_limit(MAX_RECORD_BYTES)
    yield from _grouped(file, _csv_rows(path))


def _csv_rows(path: Path) -> Iterator[Parsed]:
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as stream:
        reader = csv.DictReader(stream, strict=True)
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
                found = f"the row does not have the {len(reader.fieldnames or ())} fields of line 1"
                yield reader.line_num, BadRecord(found, hint="quote fields that hold commas")
            else:
                yield reader.line_num, row


def _read_text(path: Path, file: int) -> Iterator[Chunk]:
    with open(path, "rb") as stream:
        data = stream.read(MAX_RECORD_BYTES + 1)
    record: Any
    if len(data) > MAX_RECORD_BYTES:
        record = _too_long("a text file")
    else:
        try:
            record = {"text": data.decode("utf-8-sig")}
        except UnicodeDecodeError as error:
            record = _not_utf8(data, error)
    yield Chunk(file, records=((1, record),), num_bytes=len(data))


def _read_parquet(path: Path, file: int) -> Iterator[Chunk]:
    parquet = _optional("pyarrow.parquet", f"{path} is Parquet")
    import pyarrow

    try:
        with parquet.ParquetFile(path) as table:
            batches = table.iter_batches(CHUNK_RECORDS)
            yield from _grouped(
                file, enumerate((row for batch in batches for row in batch.to_pylist()), 1)
            )
    except (pyarrow.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"not readable as Parquet: {str(error).splitlines()[0]}",
            where=str(path),
            hint="the file is damaged or no Parquet: download or write it again",
        ) from error


def _hub_records(source: HubData) -> Iterator[Any]:
    datasets = _optional("datasets", f"{source.name} is no local path, so taken for a hub name")
    where = ":".join(part for part in (source.name, source.subset) if part)
    try:
        found = datasets.load_dataset(source.name, source.subset, revision=source.revision)
    except Exception as error:  # the library raises dozens of types for "not there" and "offline"
        raise DataError(
            f"no such file here, and the hub gives: {str(error).strip().splitlines()[0][:300]}",
            where=where,
            hint="check path or name (NAME, NAME:SUBSET or NAME:SUBSET:SPLIT); without network "
            "download it first, and give the files",
        ) from error
    split = next((name for name in source.splits if name in found), None)
    if split is None:
        raise DataError(
            f"there is no split {' or '.join(source.splits)}; there are: {', '.join(found)}",
            where=where,
            hint=f"name one: {source.name}:{source.subset or 'SUBSET'}:SPLIT",
        )
    yield from found[split]


def _optional(module: str, why: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{why}, which needs {module.partition('.')[0]}",
            where="data",
            hint="pip install 'launcher[data]'",
        ) from error


def _grouped(file: int, records: Iterator[Parsed]) -> Iterator[Chunk]:
    while group := tuple(islice(records, CHUNK_RECORDS)):
        yield Chunk(file, records=group, num_bytes=0)


_READERS: dict[str, Callable[[Path, int], Iterator[Chunk]]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".txt": _read_text,
    ".parquet": _read_parquet,
}
