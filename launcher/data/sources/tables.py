"""Readers of Parquet and Arrow files. A worker turns their batches into records.

A table gives every struct of a column the fields of all, and null where a row does not have one.
No user wrote these: they are taken out at every depth. Elements of lists, values of maps and whole
columns stay what they are.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.data.sources import limits
from launcher.data.sources.chunk import Chunk
from launcher.data.sources.optional import optional
from launcher.errors import DataError


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


def rows(data: bytes) -> Iterator[dict[str, Any]]:
    """Records of a batch."""
    from pyarrow import ipc

    with ipc.open_stream(data) as stream:
        for batch in stream:
            yield from records(batch)


def records(batch: Any) -> Iterator[dict[str, Any]]:
    """Rows of an Arrow batch or table as objects, without the nulls that it made up.

    Classes come by name where the library `datasets` wrote their names into the schema; -1 stands
    for "not labelled" there, and stays.
    """
    cleaners = {field.name: clean for field in batch.schema if (clean := _cleaner(field.type))}
    classes = _classes(batch.schema.metadata)
    for row in batch.to_pylist():
        for name, clean in cleaners.items():
            if row[name] is not None:
                row[name] = clean(row[name])
        for name, labels in classes.items():
            index = row.get(name)
            if isinstance(index, int) and 0 <= index < len(labels):
                row[name] = labels[index]
        yield row


def _cleaner(kind: Any) -> Callable[[Any], Any] | None:
    """What makes a value of this Arrow type free of made-up nulls; None if it can have none."""
    from pyarrow import types

    if types.is_struct(kind):
        inner = {field.name: _cleaner(field.type) for field in kind}
        return lambda value: _struct(value, inner)
    if types.is_map(kind):
        clean = _cleaner(kind.item_type) or _same
        return lambda pairs: {key: None if item is None else clean(item) for key, item in pairs}
    if hasattr(kind, "value_type") and not types.is_dictionary(kind):  # lists of any kind
        each = _cleaner(kind.value_type)
        if each:
            return lambda items: [None if item is None else each(item) for item in items]
    return None


def _same(value: Any) -> Any:
    return value


def _struct(
    value: Mapping[str, Any], inner: Mapping[str, Callable[[Any], Any] | None]
) -> dict[str, Any]:
    return {
        name: clean(item) if (clean := inner[name]) else item
        for name, item in value.items()
        if item is not None
    }


def _classes(metadata: Mapping[bytes, bytes] | None) -> dict[str, list[str]]:
    """Column -> names of its classes, as `datasets` keeps them in a schema."""
    try:
        raw = json.loads((metadata or {})[b"huggingface"])
        features = raw["info"]["features"].items()
        return {
            name: feature["names"]
            for name, feature in features
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


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
