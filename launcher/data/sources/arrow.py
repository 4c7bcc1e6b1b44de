"""Rows of Arrow batches as records.

A table gives every struct of a column the fields of all, and null where a row does not have one.
No user wrote these: they are taken out at every depth. Elements of lists, values of maps and whole
columns stay what they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any


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
