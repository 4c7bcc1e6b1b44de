"""The records of the training data as they stand in their files: what a grader reads beside an
answer. As where a grader is a metric, `prompt` and `reference` are texts where a record has no such
fields; `reference` is missing where nobody has written an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from launcher import fingerprint
from launcher.config.schema import Config
from launcher.core.errors import DataError
from launcher.data import sources
from launcher.data.cache import JoinedCache, TokenCache, is_asked
from launcher.data.formats.base import BadRecord


class Items:
    """The records of the prepared training data by number; read once, from their sources.

    Raises `DataError` for sources that have changed since.
    """

    def __init__(self, config: Config, cache: TokenCache | JoinedCache) -> None:
        self._cache = cache
        if fingerprint.data_keys(config)["train"] != cache.folder.name:
            raise DataError(
                "the data files are not those that were prepared for this run, and the grader reads"
                " them beside the answers",
                where="data.train",
                hint="restore the data files, or start a new run",
            )
        wanted = {cache.where(i) for i in range(len(cache))}
        self._found = {where: raw for where, raw in _records(config) if where in wanted}
        self._asked = {cache.where(i) for i in range(len(cache)) if is_asked(cache, i)}

    def item(self, record: int, prompt: str, reference: str) -> dict[str, Any]:
        """A record, with what it asks and its own answer as texts."""
        return self._item(self._cache.where(record), prompt, reference)

    def _item(self, where: str, prompt: str, reference: str) -> dict[str, Any]:
        beside = {} if where in self._asked else {"reference": reference}
        return {"prompt": prompt, **beside, **self._found[where]}

    def __iter__(self) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """("file:line", item) of all, the texts left empty."""
        for where in self._found:
            yield where, self._item(where, "", "")


def _records(config: Config) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """("file:line", record) of all sources of the training data."""
    for source in fingerprint.locate(config, "train"):
        name = sources.source_name(source)
        for chunk in sources.chunks(source, 0):
            for line, raw in chunk.parse():
                if not isinstance(raw, BadRecord):
                    yield f"{name}:{line}", raw
