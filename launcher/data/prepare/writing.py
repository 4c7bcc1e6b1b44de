"""Writing a cache: append-only files, and a journal by which a killed preparation goes on.

Each line of the journal says how long the files were after a number of chunks, and the checksum of
what each got since the line before; in front of it stands its own. After a crash the files are
compared with it from the start and cut off behind the last segment that is whole, so neither a torn
write nor a damaged block survives.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from launcher.core import files
from launcher.data.cache import ARRAYS, COLUMN, INDEX, Column, Index, Per
from launcher.data.pack.ordering import write_order

JOURNAL = "journal.jsonl"
#: A segment ends after so many bytes or seconds, whichever comes first.
SEGMENT_BYTES = 64 << 20
SEGMENT_S = 10.0
#: Files that grow with the records; the others follow from them.
_GROWING = ("tokens", "targets", "offsets", "origins", "weights", "left_out")
_BLOCK = 1 << 22


class CacheWriter:
    """Writes a cache record batch by record batch; memory does not grow with the data.

    With a `stamp` the work of an earlier process that had the same one is taken up: `resume` must
    then be called first. Nothing counts until `finish` has written index.json. `grouped`: records
    may have several documents.
    """

    def __init__(
        self,
        folder: Path,
        stamp: Any = None,
        *,
        columns: Sequence[Column] = (),
        grouped: bool = False,
    ) -> None:
        self.folder = folder
        self._stack = contextlib.ExitStack()
        self._stamp = stamp
        self._columns = {column.name: column for column in columns}
        self._types = {name: ARRAYS[name] for name in _GROWING}
        if grouped:
            self._types |= {name: ARRAYS[name] for name in ("documents", "groups")}
        if any(column.per is Per.target for column in columns):
            self._types["goals"] = ARRAYS["goals"]
        self._types |= {COLUMN + column.name: column.stored for column in columns}
        #: numbers of the different values of `json` columns, by their text
        self._values: dict[str, dict[str, int]] = {c.name: {} for c in columns if c.is_json}
        self._hashes = {name: _hash() for name in self._types}
        self._segment = {name: _hash() for name in self._types}
        self._sizes = dict.fromkeys(self._types, 0)
        self._documents = self._goals = 0
        self._begun, self._segment_bytes = time.monotonic(), 0
        self.records = self.tokens = self.target_tokens = self.longest = 0
        self._weighted = self._lossy = False
        #: hashes and sizes after each segment of an earlier process, and what its line says
        self._found: list[tuple[dict[str, Any], dict[str, Any]]] = []
        with files.storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._found = self._verify() if stamp is not None else []
        self._files: dict[str, BinaryIO] = {}
        self._journal: BinaryIO | None = None
        if not self._found:
            self._start(None)

    def __enter__(self) -> CacheWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def cursors(self) -> list[Any]:
        """What `commit` was given for each whole segment of an earlier process."""
        return [line["cursor"] for line, _ in self._found]

    def resume(self, segments: int) -> Any:
        """Go on behind the first `segments` of them; the state that the last was committed with."""
        if not self._found:
            return None
        found, self._found = self._found[:segments], []
        if not found:
            self._start(None)
            return None
        line, hashes = found[-1]
        self._hashes = hashes
        self._sizes = dict(line["sizes"])
        for name, value in line["totals"].items():
            setattr(self, name, value)
        self._weighted, self._lossy = line["weighted"], line["lossy"]
        self._documents, self._goals = line["documents"], line["goals"]
        self._values = line["values"]
        self._start([entry for entry, _ in found])
        return line["state"]

    def close(self) -> None:
        """Close the files, which writes what is left; harmless when they are closed."""
        with files.storage_errors(self.folder):
            self._stack.close()

    def append(
        self,
        tokens: NDArray[np.int32],
        targets: NDArray[np.uint8],
        lengths: NDArray[np.int32],
        origins: NDArray[np.int32],
        weights: NDArray[np.float32],
        left_out: NDArray[np.uint8] | None = None,
        *,
        documents: Sequence[tuple[int, ...]] = (),
        columns: Mapping[str, Sequence[Any] | NDArray[Any]] = MappingProxyType({}),
    ) -> None:
        """Add records: tokens and targets [total], lengths, weights and left_out [records], origins
        [records, 2]; of a grouped cache the lengths of each record's documents. Raises `ValueError`
        for a column that has not one value for each document, or target."""
        if not len(lengths):
            return
        self._write("tokens", tokens)
        self._write("targets", targets)
        self._write("origins", origins)
        self._write("weights", weights)
        if left_out is None:
            left_out = np.zeros(len(lengths), np.uint8)
        self._write("left_out", left_out)
        self._lossy = self._lossy or bool(left_out.any())
        self._add_columns(targets, lengths, documents, columns)
        self._write("offsets", self.tokens + np.cumsum(lengths, dtype=np.int64))
        self.records += len(lengths)
        self.tokens += len(tokens)
        self.target_tokens += int(targets.sum(dtype=np.int64))
        self.longest = max(self.longest, int(lengths.max()))
        self._weighted = self._weighted or bool((weights != 1).any())

    def _add_columns(
        self,
        targets: NDArray[np.uint8],
        lengths: NDArray[np.int32],
        documents: Sequence[tuple[int, ...]],
        columns: Mapping[str, Sequence[Any] | NDArray[Any]],
    ) -> None:
        """What only some objectives have: documents of a record, and columns."""
        if columns.keys() != self._columns.keys():
            raise ValueError(f"columns {sorted(columns)}, not {sorted(self._columns)}")
        if len(self._types) == len(_GROWING) and not any(documents):
            return
        documents = documents or [()] * len(lengths)
        counts = np.array([len(own) or 1 for own in documents], np.int64)
        sizes = np.array(
            [n for own, n in zip(documents, lengths, strict=True) for n in own or (n,)], np.int64
        )
        if sizes.sum() != lengths.sum():
            raise ValueError("documents that are not the tokens of their records")
        if "groups" in self._types:
            self._write("documents", self.tokens + np.cumsum(sizes))
            self._write("groups", self._documents + np.cumsum(counts))
        elif len(sizes) != len(lengths):
            raise ValueError("several documents in a record of a cache that is not grouped")
        flags = targets.astype(np.int64)
        flags[np.cumsum(sizes) - sizes] = 0
        goals = np.add.reduceat(flags, np.cumsum(lengths, dtype=np.int64) - lengths)
        if "goals" in self._types:
            self._write("goals", self._goals + np.cumsum(goals))
        self._documents += len(sizes)
        self._goals += int(goals.sum())
        for name, column in self._columns.items():
            values: Any = columns[name]
            wanted = len(sizes) if column.per is Per.document else int(goals.sum())
            if column.is_json:
                known = self._values[name]
                texts = [json.dumps(value, sort_keys=True) for value in values]
                values = [known.setdefault(text, len(known)) for text in texts]
            numbers = np.asarray(values, column.stored)
            if numbers.size != wanted * column.width:
                found = f"column {name} has {numbers.size} numbers"
                raise ValueError(f"{found}, not {column.width} for each of {wanted} {column.per}s")
            self._write(COLUMN + name, numbers)

    @property
    def is_due(self) -> bool:
        """Whether a segment should end here."""
        old = time.monotonic() - self._begun > SEGMENT_S
        return self._segment_bytes >= SEGMENT_BYTES or old

    def commit(self, cursor: Any, state: Any) -> None:
        """End a segment: a later process can go on from here. Both arguments as JSON can hold
        them."""
        assert self._journal is not None
        line = {
            "cursor": cursor,
            "state": state,
            "sizes": self._sizes,
            "digests": {name: digest.hexdigest() for name, digest in self._segment.items()},
            "totals": {
                name: getattr(self, name)
                for name in ("records", "tokens", "target_tokens", "longest")
            },
            "weighted": self._weighted,
            "lossy": self._lossy,
            "documents": self._documents,
            "goals": self._goals,
            "values": self._values,
        }
        with files.storage_errors(self.folder):
            for file in self._files.values():
                file.flush()
            self._journal.write(_signed(line))
            self._journal.flush()
        self._segment = {name: _hash() for name in self._types}
        self._begun, self._segment_bytes = time.monotonic(), 0

    def finish(self, index: Index) -> Index:
        """Make the files durable, complete `index` with totals and write it."""
        with files.storage_errors(self.folder):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
            self.close()
            sizes, checksums = dict(self._sizes), _digests(self._hashes)
            unused = self._unused()
            for name in unused:
                del sizes[name], checksums[name]
            for name, (size, digest) in write_order(self.folder, self.longest).items():
                sizes[name], checksums[name] = size, digest
        index.records, index.tokens = self.records, self.tokens
        index.target_tokens, index.longest = self.target_tokens, self.longest
        index.sizes, index.checksums = sizes, checksums
        index.columns = [
            {
                **asdict(column),
                "per": column.per.value,
                "values": list(map(json.loads, self._values.get(column.name, ()))),
            }
            for column in self._columns.values()
        ]
        files.write_atomic(self.folder / INDEX, json.dumps(asdict(index), indent=1))
        # Last, so that who is killed or has no space up to here can go on from the journal.
        with files.storage_errors(self.folder):
            (self.folder / JOURNAL).unlink(missing_ok=True)
            for name in unused:
                (self.folder / f"{name}.bin").unlink()
        return index

    def _unused(self) -> list[str]:
        """Columns that say nothing about any record."""
        return [
            *([] if self._weighted else ["weights"]),
            *([] if self._lossy else ["left_out"]),
        ]

    def _start(self, lines: list[Any] | None) -> None:
        """Open the files behind the segments of `lines`, anew without any."""
        with files.storage_errors(self.folder):
            if lines is None:
                for path in self.folder.iterdir():
                    path.unlink()
            for name in self._types:
                path = self.folder / f"{name}.bin"
                file = self._stack.enter_context(open(path, "ab"))  # noqa: SIM115
                file.truncate(self._sizes[name])
                self._files[name] = file
            journal = b"".join(map(_signed, [self._stamp, *(lines or ())]))
            files.write_atomic(self.folder / JOURNAL, journal, durable=False)
            self._journal = self._stack.enter_context(open(self.folder / JOURNAL, "ab"))  # noqa: SIM115
        self._begun = time.monotonic()
        if lines is None:
            for name in ("offsets", "documents", "groups", "goals"):
                if name in self._types:
                    self._write(name, np.zeros(1, np.int64))

    def _verify(self) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Segments of the journal as far as the files agree with it, each with the hashes there."""
        try:
            journal = (self.folder / JOURNAL).read_bytes()
        except FileNotFoundError:
            return []
        good: list[tuple[dict[str, Any], dict[str, Any]]] = []
        with contextlib.ExitStack() as stack:
            try:
                lines = _whole(journal)
                if next(lines, None) != json.loads(json.dumps(self._stamp)):
                    return []
                files = {
                    name: stack.enter_context(open(self.folder / f"{name}.bin", "rb"))
                    for name in self._types
                }
                hashes = {name: _hash() for name in self._types}
                sizes = dict.fromkeys(self._types, 0)
                for line in lines:
                    for name, file in files.items():
                        length = line["sizes"][name] - sizes[name]
                        if _read(file, length, hashes[name]) != line["digests"][name]:
                            return good
                    sizes = line["sizes"]
                    good.append((line, {name: h.copy() for name, h in hashes.items()}))
            except (KeyError, TypeError, FileNotFoundError):
                pass  # a journal of another kind, or files that are gone: what was read holds
        return good

    def _write(self, name: str, array: NDArray[Any]) -> None:
        if not array.size:
            return
        data = np.ascontiguousarray(array, dtype=self._types[name]).data.cast("B")
        with files.storage_errors(self.folder):
            self._files[name].write(data)
        self._hashes[name].update(data)
        if self._stamp is not None:
            self._segment[name].update(data)
        self._sizes[name] += data.nbytes
        self._segment_bytes += data.nbytes


def _hash() -> Any:
    return hashlib.blake2b(digest_size=16)


def _signed(line: Any) -> bytes:
    content = json.dumps(line).encode()
    return hashlib.blake2b(content, digest_size=8).hexdigest().encode() + b" " + content + b"\n"


def _whole(journal: bytes) -> Iterator[Any]:
    """The lines up to the first that is torn or damaged."""
    for line in journal.split(b"\n")[:-1]:
        _, _, content = line.partition(b" ")
        try:
            value = json.loads(content)
        except ValueError:
            return
        if _signed(value) != line + b"\n":
            return
        yield value


def _digests(hashes: dict[str, Any]) -> dict[str, str]:
    return {name: digest.hexdigest() for name, digest in hashes.items()}


def _read(file: BinaryIO, length: int, whole: Any) -> str:
    """Digest of the next `length` bytes ("" if there are fewer), which go into `whole` too."""
    digest = _hash()
    while length > 0:
        block = file.read(min(length, _BLOCK))
        if not block:
            return ""
        digest.update(block)
        whole.update(block)
        length -= len(block)
    return str(digest.hexdigest())
