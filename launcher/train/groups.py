"""Parts of the held-out records that are compared on their own."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.data.cache import TokenCache
from launcher.evals import slices


def groups(cache: TokenCache, records: Iterable[int]) -> slices.Groups:
    """Slices by the file that a record is from, and by its length."""
    ids = list(records)
    sources: dict[str, list[int]] = {}
    for record in ids:
        sources.setdefault(cache.where(record).rpartition(":")[0], []).append(record)
    lengths = {record: int(cache.lengths[record]) for record in ids}
    return {"source": sources, "length": slices.by_length(lengths)}
