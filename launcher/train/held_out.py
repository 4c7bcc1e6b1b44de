"""The records that a run is scored on, and the parts of them that are compared on their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from launcher.data.cache import JoinedCache, TokenCache
from launcher.errors import DataError
from launcher.evals import slices
from launcher.rundir import RunDir, read_json


def held_out(run: RunDir) -> str:
    """Folder of the run's held-out records; `DataError` if it has none."""
    folder = (read_json(run.data) or {}).get("validation")
    if not folder:
        raise DataError(
            "the run has no held-out records",
            where=str(run),
            hint="give data.validation or data.validation_share when training",
        )
    return str(folder)


def open_sets(folders: Mapping[str, object]) -> dict[str, TokenCache | JoinedCache]:
    """Split -> its records, for every split that data.json has a folder for."""
    return {
        split: TokenCache.open(Path(folder))
        for split, folder in folders.items()
        if isinstance(folder, str)
    }


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spaced."""
    most = min(most, count)
    return [i * count // most for i in range(most)]


def groups(cache: TokenCache | JoinedCache, records: Iterable[int]) -> slices.Groups:
    """Slices by the file that a record is from, and by its length."""
    ids = list(records)
    sources: dict[str, list[int]] = {}
    for record in ids:
        sources.setdefault(cache.where(record).rpartition(":")[0], []).append(record)
    lengths = {record: int(cache.lengths[record]) for record in ids}
    return {"source": sources, "length": slices.by_length(lengths)}
