"""The prepared form of one split: flat arrays on disk that ranks map and never parse.

tokens.bin   int32 [tokens]       all records' tokens, one after another
targets.bin  uint8 [tokens]       1 where the token itself is to be learned
offsets.bin  int64 [records + 1]  where each record begins
origins.bin  int32 [records, 2]   file index and 1-based line (or record) number
index.json   what is in here; written last, so a folder without it is not a cache
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from launcher import rundir
from launcher.errors import StorageError
from launcher.fingerprint import LAYOUT_VERSION

INDEX = "index.json"
_ARRAYS: dict[str, Any] = {
    "tokens": np.int32,
    "targets": np.uint8,
    "offsets": np.int64,
    "origins": np.int32,
}


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the records of a split."""

    read: int = 0
    skipped: int = 0
    truncated: int = 0
    dropped: int = 0
    split: int = 0
    """Records cut into pieces (the pieces are records of their own)."""

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(a + b for a, b in zip(_values(self), _values(other), strict=True)))


def _values(counts: Counts) -> tuple[int, ...]:
    return tuple(asdict(counts).values())


@dataclass(kw_only=True, slots=True)
class Index:
    """Content of index.json. `sizes` are bytes, `checksums` BLAKE2b of the .bin files."""

    key: str
    files: list[str]
    format: str
    tokenizer: str
    max_length: int
    records: int = 0
    tokens: int = 0
    target_tokens: int = 0
    longest: int = 0
    counts: Counts = field(default_factory=Counts)
    sizes: dict[str, int] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)
    version: int = LAYOUT_VERSION


class TokenCache:
    """One split, mapped read-only. Open it with `TokenCache.open`."""

    def __init__(self, folder: Path, index: Index, arrays: dict[str, NDArray[Any]]) -> None:
        self.folder = folder
        self.index = index
        self.tokens = arrays["tokens"]
        self.targets = arrays["targets"]
        self.offsets = arrays["offsets"]
        self.origins = arrays["origins"].reshape(-1, 2)
        self.lengths: NDArray[np.int32] = np.diff(self.offsets).astype(np.int32)

    @classmethod
    def open(cls, folder: str | Path, verify: bool = False) -> TokenCache:
        """Map the cache in `folder`. Sizes are always checked, checksums with `verify`.

        Raises `StorageError` when the folder is not a complete, undamaged cache of this version.
        """
        folder = Path(folder)
        index = read_index(folder)
        if verify:
            verify_checksums(folder, index)
        arrays = {name: _map(folder / f"{name}.bin", dtype) for name, dtype in _ARRAYS.items()}
        return cls(folder, index, arrays)

    def __len__(self) -> int:
        return self.index.records

    def record(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Tokens and target flags of record `i`, both [length], as views of the mapped files."""
        begin, end = self.offsets[i], self.offsets[i + 1]
        return self.tokens[begin:end], self.targets[begin:end]

    def where(self, i: int) -> str:
        """Origin of record `i` as "file:line"."""
        file, line = self.origins[i]
        return f"{self.index.files[file]}:{line}"


def _map(path: Path, dtype: Any) -> NDArray[Any]:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    # A plain array over the map: every slice of a np.memmap pays for the subclass.
    return np.memmap(path, dtype, "r").view(np.ndarray)


def read_index(folder: Path) -> Index:
    """Index of a complete cache whose files have the recorded sizes; `StorageError` otherwise."""
    raw = rundir.read_json(folder / INDEX)
    if not isinstance(raw, dict) or raw.get("version") != LAYOUT_VERSION:
        raise _damaged(folder, f"{INDEX} is missing, unreadable or of another version")
    try:
        index = Index(**{**raw, "counts": Counts(**raw["counts"])})
    except (TypeError, KeyError) as error:
        raise _damaged(folder, f"{INDEX} is not readable ({error})") from error
    for name in _ARRAYS:
        path = folder / f"{name}.bin"
        size = path.stat().st_size if path.is_file() else None
        if size is None or size != index.sizes.get(name):
            raise _damaged(folder, f"{path.name} has {size} bytes, not {index.sizes.get(name)}")
    return index


def verify_checksums(folder: Path, index: Index) -> None:
    """Read all files of a cache; `StorageError` if one differs from what was written."""
    for name in _ARRAYS:
        with open(folder / f"{name}.bin", "rb") as file:
            digest = hashlib.blake2b(digest_size=16)
            while block := file.read(1 << 22):
                digest.update(block)
        if digest.hexdigest() != index.checksums.get(name):
            raise _damaged(folder, f"{name}.bin has another checksum than when it was written")


def _damaged(folder: Path, found: str) -> StorageError:
    return StorageError(
        f"damaged data cache: {found}",
        where=str(folder),
        hint="delete the folder; `launcher data prepare` makes it again",
    )


class CacheWriter:
    """Writes a cache record batch by record batch; memory does not grow with the data.

    Nothing counts until `finish` has written index.json; `close` it in any case.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = contextlib.ExitStack()
        with rundir.storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._files: dict[str, BinaryIO] = {
                name: self._stack.enter_context(open(folder / f"{name}.bin", "wb"))  # noqa: SIM115
                for name in _ARRAYS
            }
        self._hashes = {name: hashlib.blake2b(digest_size=16) for name in _ARRAYS}
        self._sizes = dict.fromkeys(_ARRAYS, 0)
        self.records = self.tokens = self.target_tokens = self.longest = 0
        self._write("offsets", np.zeros(1, np.int64))

    def close(self) -> None:
        """Close the files; harmless when they are closed."""
        self._stack.close()

    def append(
        self,
        tokens: NDArray[np.int32],
        targets: NDArray[np.uint8],
        lengths: NDArray[np.int32],
        origins: NDArray[np.int32],
    ) -> None:
        """Add records: tokens and targets [total], lengths [records], origins [records, 2]."""
        if not len(lengths):
            return
        self._write("tokens", tokens)
        self._write("targets", targets)
        self._write("origins", origins)
        self._write("offsets", self.tokens + np.cumsum(lengths, dtype=np.int64))
        self.records += len(lengths)
        self.tokens += len(tokens)
        self.target_tokens += int(targets.sum(dtype=np.int64))
        self.longest = max(self.longest, int(lengths.max()))

    def finish(self, index: Index) -> Index:
        """Make the files durable, complete `index` with totals and write it."""
        with rundir.storage_errors(self.folder):
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        index.records, index.tokens = self.records, self.tokens
        index.target_tokens, index.longest = self.target_tokens, self.longest
        index.sizes = dict(self._sizes)
        index.checksums = {name: digest.hexdigest() for name, digest in self._hashes.items()}
        rundir.write_atomic(self.folder / INDEX, json.dumps(asdict(index), indent=1))
        return index

    def _write(self, name: str, array: NDArray[Any]) -> None:
        data = np.ascontiguousarray(array, dtype=_ARRAYS[name]).data.cast("B")
        with rundir.storage_errors(self.folder):
            self._files[name].write(data)
        self._hashes[name].update(data)
        self._sizes[name] += data.nbytes


def write(
    folder: Path,
    records: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    max_length: int = 1024,
    file: str = "records",
) -> TokenCache:
    """Make a cache of (tokens, targets) pairs that are at hand, and open it."""
    with contextlib.closing(CacheWriter(folder)) as writer:
        for line, (tokens, targets) in enumerate(records, 1):
            writer.append(
                np.array(tokens, np.int32),
                np.array(targets, np.uint8),
                np.array([len(tokens)], np.int32),
                np.array([[0, line]], np.int32),
            )
        writer.finish(
            Index(key="", files=[file], format="tokens", tokenizer="", max_length=max_length)
        )
    return TokenCache.open(folder)
