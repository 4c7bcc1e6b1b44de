"""Reading data files in bounded memory, as chunks that workers parse.

The reading process only finds line ends; parsing JSON is the workers' part. Whatever cannot be read
becomes a `BadRecord` in its place, so it is reported with file and line like any other.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from launcher.core.errors import DataError
from launcher.data.sources import compressed, hub, lines, tables
from launcher.data.sources.chunk import Chunk, Parsed, grouped, parse_line
from launcher.fingerprint import (
    SUFFIXES,
    BuiltinData,
    HubData,
    RemoteData,
    RemoteFile,
    Source,
    suffixes,
)

__all__ = ["Chunk", "Parsed", "chunks", "make_builtin", "parse_line", "source_name"]

_STREAMS: dict[str, Callable[[BinaryIO, int], Iterator[Chunk]]] = {
    ".jsonl": lines.read_jsonl,
    ".json": lines.read_json,
    ".csv": lines.read_csv,
    ".txt": lines.read_text,
}
_TABLES: dict[str, Callable[[Path, int], Iterator[Chunk]]] = {
    ".parquet": tables.read_parquet,
    ".arrow": tables.read_arrow,
}


def chunks(source: Source, file: int) -> Iterator[Chunk]:
    """All records of a source, at least one.

    Raises `DataError` for a file that cannot be read at all, or has no record.
    """
    empty = True
    for chunk in _chunks(source, file):
        empty = empty and chunk.is_blank
        yield chunk
    if empty:
        raise DataError(
            "there is no record in it", where=source_name(source), hint="remove it from the data"
        )


def source_name(source: Source) -> str:
    """How a source is called in messages and in origins of records."""
    if isinstance(source, HubData):
        return ":".join(part for part in (source.name, source.subset) if part)
    if isinstance(source, BuiltinData):
        return f"builtin:{source.name}"
    return source.url if isinstance(source, RemoteData | RemoteFile) else str(source)


def make_builtin(source: BuiltinData) -> Path:
    """The file of a built-in data set, written at first use."""
    from launcher.data import builtin

    path = source.folder / f"{source.name}.{source.split}.jsonl"
    return path if path.is_file() else builtin.write(source.name, source.folder)[source.split]


def _chunks(source: Source, file: int) -> Iterator[Chunk]:
    if isinstance(source, HubData):
        yield from grouped(file, enumerate(hub.records(source), 1))
        return
    assert not isinstance(source, RemoteData), "prepare fetches URLs before it reads"
    if isinstance(source, BuiltinData):
        path = make_builtin(source)
    else:
        path = source.path if isinstance(source, RemoteFile) else source
    where = source_name(source)
    ending, compression = suffixes(path.name)
    if ending not in (_STREAMS if compression else _STREAMS | _TABLES):
        raise DataError(
            f"files ending in {ending + compression or 'nothing'} are not known",
            where=where,
            hint=f"use one of {', '.join(SUFFIXES)}; {', '.join(_STREAMS)} also with .gz or .zst",
        )
    try:
        if path.stat().st_size == 0:
            raise DataError("the file is empty", where=where, hint="give a file with records")
        if ending in _TABLES:
            yield from _TABLES[ending](path, file)
            return
        with compressed.opened(path, compression) as stream:
            yield from _STREAMS[ending](stream, file)
    except (OSError, EOFError, zlib.error) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise DataError(
            f"cannot be read: {reason or error}", where=where, hint="check path and permissions"
        ) from error
