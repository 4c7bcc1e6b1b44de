"""The prepared form of one split: flat arrays on disk that ranks map and never parse.

tokens.bin     int32 [tokens]       all records' tokens, one after another
targets.bin    uint8 [tokens]       1 where the token itself is to be learned
offsets.bin    int64 [records + 1]  where each record begins
origins.bin    int32 [records, 2]   file index and 1-based line (or record) number
weights.bin    float32 [records]    only if some record has another weight than 1
left_out.bin   uint8 [records]      only if the chat template leaves something out: kinds, as bits
documents.bin  int64 [documents+1]  where each document begins, if records have several
groups.bin     int64 [records + 1]  first document of each record, if records have several
goals.bin      int64 [records + 1]  first target of each record, if a column has values by target
column.NAME.bin                     what the objective keeps of each document or target: `Column`
order.bin      int64 [records]      records by length, those of a length in their order
histogram.bin  int64 [longest + 1]  how many records there are of each length
index.json     what is in here; written last, so a folder without it is not a cache

A mixture is a folder with index.json alone, which names the caches of its sources.
"""

from __future__ import annotations

import functools
import hashlib
import os
import socket
from bisect import bisect_right
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.core import files
from launcher.core.errors import StorageError
from launcher.fingerprint import LAYOUT_VERSION

INDEX = "index.json"
ARRAYS: dict[str, Any] = {
    "tokens": np.int32,
    "targets": np.uint8,
    "offsets": np.int64,
    "origins": np.int32,
    "weights": np.float32,
    "left_out": np.uint8,
    "documents": np.int64,
    "groups": np.int64,
    "goals": np.int64,
    "order": np.int64,
    "histogram": np.int64,
}
_OPTIONAL = ("weights", "left_out", "documents", "groups", "goals")
#: Name of a column's array, before its own name.
COLUMN = "column."


class Per(Enum):
    """What has a value in a column. Targets are those with a token before them in their
    document."""

    document = "document"
    target = "target"


@dataclass(frozen=True, slots=True)
class Column:
    """Values that an objective keeps beside the tokens."""

    name: str
    per: Per = Per.document
    dtype: str = "float32"
    """float32, int32, int64, or `json`: any JSON value, of which there are few different ones."""
    width: int = 1
    """Numbers in a value."""

    def __post_init__(self) -> None:
        if self.is_json and (self.per is Per.target or self.width != 1):
            raise ValueError(f"column {self.name}: a json value is of a document, and one")

    @property
    def is_json(self) -> bool:
        """Whether the values are kept as numbers in a list of their own."""
        return self.dtype == "json"

    @property
    def stored(self) -> Any:
        """Type of the numbers on disk."""
        return np.dtype("int32" if self.is_json else self.dtype)


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the records of a split."""

    read: int = 0
    skipped: int = 0
    truncated: int = 0
    dropped: int = 0
    split: int = 0
    """Records cut into pieces (the pieces are records of their own)."""
    left_out: int = 0
    """Records of which the chat template leaves something out."""
    spelled: int = 0
    """Records that spell control tokens in their texts, which are kept as text."""
    overlong: int = 0
    """Of the dropped, those of which nothing to learn is left within `data.max_length`."""
    asked: int = 0
    """Records that only ask: the last token of each stands for an answer that nobody has
    written."""

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
    mixture: list[dict[str, Any]] = field(default_factory=list)
    """Of a mixture, its sources: folder, name, weight, epochs."""
    temperature: float | None = None
    columns: list[dict[str, Any]] = field(default_factory=list)
    """Fields of each `Column`, and under `values` the different ones of a `json` column."""
    turn_ends: dict[str, list[int]] | None = None
    """How learned turns end, as `launcher.data.chat.turn_ends` counts; None where nobody knows."""
    documents: list[str] = field(default_factory=list)
    """What the documents of a record are called, where they have names."""


class TokenCache:
    """One split, mapped read-only. Open it with `TokenCache.open`."""

    def __init__(self, folder: Path, index: Index, arrays: dict[str, NDArray[Any]]) -> None:
        self.folder = folder
        self.index = index
        self.tokens = arrays["tokens"]
        self.targets = arrays["targets"]
        self.offsets = arrays["offsets"]
        self.origins = arrays["origins"].reshape(-1, 2)
        self.weights: NDArray[np.float32] | None = arrays.get("weights")
        self._left_out: NDArray[np.uint8] | None = arrays.get("left_out")
        self._documents: NDArray[np.int64] | None = arrays.get("documents")
        self._groups: NDArray[np.int64] | None = arrays.get("groups")
        self._goals: NDArray[np.int64] | None = arrays.get("goals")
        self.columns: dict[str, Column] = {}
        self.values: dict[str, list[Any]] = {}
        """The different values of `json` columns."""
        self._numbers: dict[str, NDArray[Any]] = {}
        self._meanings: dict[str, NDArray[Any]] = {}
        for column, entry in zip(columns_of(index), index.columns, strict=True):
            self.columns[column.name] = column
            numbers = arrays[COLUMN + column.name]
            self._numbers[column.name] = (
                numbers if column.width == 1 else numbers.reshape(-1, column.width)
            )
            if column.is_json:
                self.values[column.name] = entry["values"]
        self.order = arrays["order"]
        self.histogram = arrays["histogram"]

    @classmethod
    def open(cls, folder: str | Path, verify: bool = False) -> TokenCache | JoinedCache:
        """Map the cache in `folder`. Sizes are always checked, checksums with `verify`.

        Raises `StorageError` when the folder is not a complete, undamaged cache of this version.
        """
        folder = Path(folder)
        index = read_index(folder)
        if index.mixture:
            parts = [cls.open(folder.with_name(part["folder"]), verify) for part in index.mixture]
            return JoinedCache(folder, index, [part for part in parts if type(part) is cls])
        if verify:
            verify_checksums(folder, index)
        types = {**ARRAYS, **column_types(index)}
        arrays = {name: _map(folder / f"{name}.bin", types[name]) for name in index.sizes}
        return cls(folder, index, arrays)

    def __len__(self) -> int:
        return self.index.records

    @functools.cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each record; worked out on first use, which reads all offsets."""
        return np.diff(self.offsets).astype(np.int32)

    def record(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Tokens and target flags of record `i`, both [length], as views of the mapped files."""
        begin, end = self.offsets[i], self.offsets[i + 1]
        return self.tokens[begin:end], self.targets[begin:end]

    def documents(self, i: int) -> list[int]:
        """Lengths of the documents of record `i`."""
        if self._documents is None or self._groups is None:
            return [int(self.offsets[i + 1] - self.offsets[i])]
        first, last = int(self._groups[i]), int(self._groups[i + 1])
        return [int(n) for n in np.diff(self._documents[first : last + 1])]

    def column(self, name: str, i: int) -> NDArray[Any]:
        """Values of a column for the documents or targets of record `i`; those of a `json` column
        as `give` has said."""
        column = self.columns[name]
        if column.is_json and name not in self._meanings:
            raise ValueError(f"column {name} has JSON values: `give` says what they are in a row")
        numbers = self._numbers[name][self.places(column, i)]
        return self._meanings[name][numbers] if name in self._meanings else numbers

    def places(self, column: Column, i: int) -> slice:
        """Which documents, or targets, of the cache are those of record `i`."""
        if column.per is Per.target:
            return slice(int(self.goals[i]), int(self.goals[i + 1]))
        if self._groups is None:
            return slice(i, i + 1)
        return slice(int(self._groups[i]), int(self._groups[i + 1]))

    def attach(self, column: Column, values: NDArray[Any]) -> None:
        """Give the records a further column, or other values of it: all documents' or targets'
        numbers, one after another."""
        self.columns[column.name] = column
        self._numbers[column.name] = (
            values if column.width == 1 else values.reshape(-1, column.width)
        )

    @functools.cached_property
    def goals(self) -> NDArray[np.int64]:
        """First target of each record, int64 [records + 1]; counted where it is not kept."""
        if self._goals is not None:
            return self._goals
        starts = self.offsets[:-1] if self._documents is None else self._documents[:-1]
        firsts = self.targets[starts].astype(np.int64)
        if self._groups is not None:
            firsts = np.add.reduceat(firsts, self._groups[:-1])
        counts = np.add.reduceat(self.targets, self.offsets[:-1], dtype=np.int64) - firsts
        return np.concatenate([[0], np.cumsum(counts)])

    @property
    def num_documents(self) -> int:
        """Documents of all records."""
        return len(self) if self._groups is None else int(self._groups[-1])

    @property
    def num_targets(self) -> int:
        """Targets of all records, those that have a token before them in their document."""
        return int(self.goals[-1])

    def value(self, name: str, i: int) -> Any:
        """Value of a `json` column for the first document of record `i`."""
        first = i if self._groups is None else int(self._groups[i])
        return self.values[name][self._numbers[name][first]]

    def count(self, name: str) -> list[int]:
        """How many documents have each of `values[name]`."""
        return list(np.bincount(self._numbers[name], minlength=len(self.values[name])).tolist())

    def first(self, name: str, value: int) -> int:
        """The first record with number `value` of a `json` column."""
        document = int(np.flatnonzero(self._numbers[name] == value)[0])
        if self._groups is None:
            return document
        return int(np.searchsorted(self._groups, document, side="right")) - 1

    def give(self, name: str, meanings: NDArray[Any]) -> None:
        """Say what each of `values[name]` is in a row, [values, ...]."""
        self._meanings[name] = meanings

    @property
    def parts(self) -> list[TokenCache]:
        """The caches that it consists of."""
        return [self]

    def weight(self, i: int) -> float:
        """What the loss of record `i` is multiplied by."""
        return 1.0 if self.weights is None else float(self.weights[i])

    def left_out(self, i: int) -> int:
        """Kinds of what the chat template leaves out of record `i`, as bits."""
        return 0 if self._left_out is None else int(self._left_out[i])

    @property
    def is_weighted(self) -> bool:
        """Whether some record has another weight than 1."""
        return self.weights is not None

    def where(self, i: int) -> str:
        """Origin of record `i` as "file:line"."""
        file, line = self.origins[i]
        return f"{self.index.files[file]}:{line}"


class JoinedCache:
    """The caches of a mixture as one: the records of the first source come first, and so on."""

    def __init__(self, folder: Path, index: Index, parts: list[TokenCache]) -> None:
        self.folder = folder
        self.index = index
        self.parts = parts
        #: number of the first record of each source, and of all records
        self.starts = np.cumsum([0, *map(len, parts)]).tolist()

    def __len__(self) -> int:
        return int(self.starts[-1])

    @functools.cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens of each record; worked out on first use, which reads all offsets."""
        return np.concatenate([part.lengths for part in self.parts])

    @property
    def is_weighted(self) -> bool:
        """Whether some record has another weight than 1."""
        return any(part.is_weighted for part in self.parts)

    def record(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        """Tokens and target flags of record `i`, both [length], as views of the mapped files."""
        part, own = self._find(i)
        return part.record(own)

    def weight(self, i: int) -> float:
        """What the loss of record `i` is multiplied by."""
        part, own = self._find(i)
        return part.weight(own)

    def left_out(self, i: int) -> int:
        """Kinds of what the chat template leaves out of record `i`, as bits."""
        part, own = self._find(i)
        return part.left_out(own)

    @property
    def columns(self) -> dict[str, Column]:
        """What the objective has kept beside the tokens, alike in all parts."""
        return self.parts[0].columns

    def documents(self, i: int) -> list[int]:
        """Lengths of the documents of record `i`."""
        part, own = self._find(i)
        return part.documents(own)

    def column(self, name: str, i: int) -> NDArray[Any]:
        """Values of a column for the documents or targets of record `i`."""
        part, own = self._find(i)
        return part.column(name, own)

    def value(self, name: str, i: int) -> Any:
        """Value of a `json` column for the first document of record `i`."""
        part, own = self._find(i)
        return part.value(name, own)

    def where(self, i: int) -> str:
        """Origin of record `i` as "file:line"."""
        part, own = self._find(i)
        return part.where(own)

    def _find(self, i: int) -> tuple[TokenCache, int]:
        which = bisect_right(self.starts, i) - 1
        return self.parts[which], int(i) - self.starts[which]


def is_asked(cache: TokenCache | JoinedCache, i: int) -> bool:
    """Whether record `i` is a question whose last token stands for an answer that nobody has
    written."""
    if not cache.index.counts.asked:
        return False
    targets = cache.record(i)[1]
    return bool(targets[-1]) and int(targets.sum()) == 1


def shown(value: Any) -> str:
    """A value of a `json` column, for people."""
    several = value if isinstance(value, list) else [value]
    return ", ".join(map(str, several)) or "none"


def _map(path: Path, dtype: Any) -> NDArray[Any]:
    if not path.stat().st_size:  # an empty file cannot be mapped
        return np.zeros(0, dtype)
    # A plain array over the map: every slice of a np.memmap pays for the subclass.
    return np.memmap(path, dtype, "r").view(np.ndarray)


def read_index(folder: Path) -> Index:
    """Index of a complete cache whose files have the recorded sizes; `StorageError` otherwise."""
    raw = files.read_json(folder / INDEX)
    if not isinstance(raw, dict):
        _require_here(folder)
        raise _damaged(folder, f"{INDEX} is missing or unreadable")
    if raw.get("version") != LAYOUT_VERSION:
        raise _damaged(folder, f"{INDEX} is of version {raw.get('version')}, not {LAYOUT_VERSION}")
    try:
        index = Index(**{**raw, "counts": Counts(**raw["counts"])})
    except (TypeError, KeyError) as error:
        raise _damaged(folder, f"{INDEX} is not readable ({error})") from error
    for name in _expected(index):
        path = folder / f"{name}.bin"
        if not os.access(path, os.R_OK):
            files.require_readable(folder)
        size = path.stat().st_size if path.is_file() else None
        if size is None or size != index.sizes.get(name):
            raise _damaged(folder, f"{path.name} has {size} bytes, not {index.sizes.get(name)}")
    return index


def _expected(index: Index) -> list[str]:
    if index.mixture:
        return []
    always = [name for name in ARRAYS if name not in _OPTIONAL or name in index.sizes]
    return [*always, *column_types(index)]


def column_types(index: Index) -> dict[str, Any]:
    """Name -> type of the arrays of the columns."""
    return {COLUMN + column.name: column.stored for column in columns_of(index)}


def columns_of(index: Index) -> list[Column]:
    """The columns that an index describes."""
    return [
        Column(entry["name"], Per(entry["per"]), entry["dtype"], entry["width"])
        for entry in index.columns
    ]


def verify_checksums(folder: Path, index: Index) -> None:
    """Read all files of a cache; `StorageError` if one differs from what was written."""
    for name in index.sizes:
        with open(folder / f"{name}.bin", "rb") as file:
            digest = hashlib.blake2b(digest_size=16)
            while block := file.read(1 << 22):
                digest.update(block)
        if digest.hexdigest() != index.checksums.get(name):
            raise _damaged(folder, f"{name}.bin has another checksum than when it was written")


def _require_here(folder: Path) -> None:
    """Raises `StorageError` where nothing can be said of a cache, for it cannot be seen."""
    files.require_readable(folder)
    if not folder.is_dir():
        raise StorageError(
            f"host {socket.gethostname()} does not see this folder of prepared data",
            where=str(folder),
            hint="keep the cache where all nodes see it: export LAUNCHER_CACHE=FOLDER, or"
            " data.cache=FOLDER (`launcher data prepare` makes again what was deleted)",
        )


def _damaged(folder: Path, found: str) -> StorageError:
    return StorageError(
        f"damaged data cache: {found}",
        where=str(folder),
        hint="delete the folder; `launcher data prepare` makes it again",
    )
