"""Held-out records by the values of fields of theirs that training does not read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher import fingerprint
from launcher.config.schema import Config
from launcher.core.errors import DataError, did_you_mean
from launcher.data import sources
from launcher.data.cache import TokenCache
from launcher.data.formats.base import BadRecord
from launcher.data.origins import call_as_now

#: Name of the group of records without the field.
ABSENT = "(none)"
#: Characters of a value that name its group.
MOST = 80

#: field -> value -> held-out records
Groups = dict[str, dict[str, list[int]]]


def held_out_groups(config: Config, folder: Path) -> Groups:
    """The records of the cache in `folder` by each field of `eval.slices`, read from the sources.

    A field inside of others is named with dots. Raises `DataError` for a field that no held-out
    record has.
    """
    cache = TokenCache.open(folder)
    call_as_now(cache, config, "validation")
    places: dict[str, list[int]] = {}
    for record in range(len(cache)):
        places.setdefault(cache.where(record), []).append(record)
    groups: Groups = {name: {} for name in config.eval.slices}
    seen: set[str] = set()
    for where, raw in _records(config):
        if not places:
            break
        ids = places.pop(where, ())
        for name in groups if ids else ():
            seen.update(raw)
            groups[name].setdefault(_value(raw, name), []).extend(ids)
    for name, values in groups.items():
        if set(values) <= {ABSENT}:
            raise DataError(
                f"no held-out record has a field {name!r}",
                where="eval.slices",
                hint=did_you_mean(name, sorted(seen)),
            )
    return groups


def _records(config: Config) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """("file:line", record) of the split that held-out records are from."""
    split = "train" if config.data.validation is None else "validation"
    for source in fingerprint.locate(config, split):
        name = sources.source_name(source)
        for chunk in sources.chunks(source, 0):
            for line, raw in chunk.parse():
                if not isinstance(raw, BadRecord):
                    yield f"{name}:{line}", raw


def _value(raw: Any, name: str) -> str:
    for key in name.split("."):
        raw = raw.get(key) if isinstance(raw, Mapping) else None
    return ABSENT if raw is None else str(raw)[:MOST]
