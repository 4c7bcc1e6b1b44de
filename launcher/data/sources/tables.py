"""Readers of Parquet and Arrow files. A worker turns their batches into records."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.core.errors import DataError
from launcher.data.sources import limits
from launcher.data.sources.chunk import Chunk
from launcher.data.sources.optional import optional


def read_parquet(path: Path, file: int) -> Iterator[Chunk]:
    """A record a row."""
    parquet = optional("pyarrow.parquet", f"{path} is Parquet")
    with _damage(path, "Parquet"), parquet.ParquetFile(path) as table:
        _check_names(path, table.schema_arrow.names)
        batches = table.iter_batches(limits.CHUNK_RECORDS)
        yield from _batches(file, (batch.replace_schema_metadata(None) for batch in batches))


def read_arrow(path: Path, file: int) -> Iterator[Chunk]:
    """A record a row of an Arrow file (Feather included) or stream."""
    ipc = optional("pyarrow.ipc", f"{path} is Arrow")
    import pyarrow

    with _damage(path, "Arrow"), pyarrow.memory_map(str(path)) as mapped:
        is_file = mapped.read(6) == b"ARROW1"
        mapped.seek(0)
        table = ipc.open_file(mapped) if is_file else ipc.open_stream(mapped)
        _check_names(path, table.schema.names)
        whole = map(table.get_batch, range(table.num_record_batches)) if is_file else iter(table)
        size = limits.CHUNK_RECORDS
        parts = (b.slice(at, size) for b in whole for at in range(0, b.num_rows, size))
        yield from _batches(file, parts)


def _batches(file: int, batches: Iterator[Any]) -> Iterator[Chunk]:
    import pyarrow
    from pyarrow import ipc

    first = 1
    for batch in batches:
        if not batch.num_rows:
            continue
        sink = pyarrow.BufferOutputStream()
        with ipc.new_stream(sink, batch.schema) as stream:
            stream.write_batch(batch)
        data = sink.getvalue().to_pybytes()
        yield Chunk(file, first, num_bytes=len(data), arrow=data)
        first += batch.num_rows


def _check_names(path: Path, names: list[str]) -> None:
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise DataError(
            f"two columns are called {twice[0]!r}",
            where=str(path),
            hint="give each column a name of its own",
        )


@contextlib.contextmanager
def _damage(path: Path, what: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, EOFError) as error:
        raise DataError(
            f"not readable as {what}: {str(error).splitlines()[0]}",
            where=str(path),
            hint=f"the file is damaged or no {what}: download or write it again",
        ) from error
