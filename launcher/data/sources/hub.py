"""Records of a data set of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from launcher.core.errors import DataError
from launcher.data.sources import arrow, limits
from launcher.data.sources.optional import optional
from launcher.fingerprint import HubData


def records(source: HubData) -> Iterator[Any]:
    """Records of a hub data set, classes by name. Raises `DataError` where it cannot be had."""
    datasets = optional("datasets", f"{source.name} is no local path, so taken for a hub name")
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
    chosen = found[split]
    # In its Arrow form: what the library itself makes of a row has nulls that nobody wrote.
    for batch in chosen.with_format("arrow").iter(limits.CHUNK_RECORDS):
        yield from arrow.records(batch)
