"""The held-out records of a run, and the parts of them that are compared on their own."""

from __future__ import annotations

from collections.abc import Iterable

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


def groups(cache: TokenCache | JoinedCache, records: Iterable[int]) -> slices.Groups:
    """Slices by the file that a record is from, and by its length."""
    ids = list(records)
    sources: dict[str, list[int]] = {}
    for record in ids:
        sources.setdefault(cache.where(record).rpartition(":")[0], []).append(record)
    lengths = {record: int(cache.lengths[record]) for record in ids}
    return {"source": sources, "length": slices.by_length(lengths)}
