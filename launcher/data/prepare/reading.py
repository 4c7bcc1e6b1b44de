"""The sources of one part of the data as a stream of chunks that can be taken up in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from launcher.config.schema import Config, OnBadRecord, variants
from launcher.config.schema.kinds import readable
from launcher.core.errors import ConfigError, DataError
from launcher.data import formats, sources
from launcher.data.formats.base import BadRecord
from launcher.data.formats.learned import way_out
from launcher.data.sources import Chunk
from launcher.fingerprint import Part

#: Records that vote on the format.
DETECT_RECORDS = 50

Cursor = list[int]
"""File, how many of its chunks are done, and the number of the first record of the last of them."""


class PartReader:
    """All chunks of a part, whose files must have one format."""

    def __init__(self, part: Part, config: Config) -> None:
        self.files = [sources.source_name(source) for source in part.sources]
        self._part = part
        self._learns_all = config.objective.learns_every_token
        self._asks = config.objective.samples
        self._skips = config.data.bad_records is OnBadRecord.skip
        self._auto = part.item.format == "auto"
        self.format = part.item.format
        if self._auto:
            self.format = self._detect(self._first(0), required=True)
        kind = variants.kind_of_format(self.format)
        if kind is not None and kind not in readable(config.objective.learns):
            parsed = (record for _, record in self._first(0).parse())
            first: Any = next((found for found in parsed if not isinstance(found, BadRecord)), {})
            raise ConfigError(
                f"{config.objective.name} with {self.format} data ({self.files[0]})",
                where="objective.name",
                hint=way_out(config.objective, kind, first),
            )

    def chunks(self, cursor: Cursor | None) -> Iterator[Chunk] | None:
        """The chunks behind `cursor`; None if the sources are not cut there any more."""
        file, done, first = cursor or [0, 0, 0]
        stream = self._file(file)
        last = None
        for _ in range(done):
            last = next(stream, None)
        if done and (last is None or first_of(last) != first):
            return None
        later = range(file + 1, len(self.files))
        return chain(stream, chain.from_iterable(map(self._file, later)))

    def _file(self, file: int) -> Iterator[Chunk]:
        if self._auto and file:
            found = self._detect(self._first(file), required=not self._skips)
            if found not in ("", self.format):
                raise DataError(
                    f"the records are {found}, those of {self.files[0]} are {self.format}",
                    where=self.files[file],
                    hint="give sources of several formats one by one: "
                    "'data.train=[{path: A}, {path: B}]'; or force one with data=FORMAT",
                )
        yield from sources.chunks(self._part.sources[file], file)

    def _first(self, file: int) -> Chunk:
        """The first chunk that is not blank; without any, the source itself is refused."""
        stream = sources.chunks(self._part.sources[file], file)
        return next(chunk for chunk in stream if not chunk.is_blank)

    def _detect(self, chunk: Chunk, required: bool) -> str:
        """Name of the format of a file's first records; "" if none can be told nor is required."""
        parsed = list(islice(chunk.parse(), DETECT_RECORDS))
        usable = [record for _, record in parsed if not isinstance(record, BadRecord)]
        line, reason = parsed[0]
        if usable:
            try:
                columns = self._part.item.columns
                return formats.detect(usable, columns, learns_all=self._learns_all, asks=self._asks)
            except BadRecord as error:
                line = next(line for line, record in parsed if record is usable[0])
                reason = error
        if not required:
            return ""
        where = f"{self.files[chunk.file]}:{line}"
        raise DataError(reason.found, where=where, hint=reason.hint)


def first_of(chunk: Chunk) -> int:
    """Number of a chunk's first line or record."""
    return chunk.records[0][0] if chunk.records else chunk.first_line
