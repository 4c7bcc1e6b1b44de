"""What a model makes of prepared records, kept beside them: columns that are filled once.

FOLDER/<key>/            one for each model and prepared split
  column.NAME.bin        values by document or target, as in `launcher.data.cache`
  done.bin               uint8 [records]: 1 where the values of a record are there
  about.json             what the key stands for

A value that has been written is never written again, so that a run that goes on reads what it has
read before, whoever else fills the columns meanwhile.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from launcher.config.schema import Config
from launcher.core.errors import DataError, StorageError
from launcher.core.files import open_lock, read_json, storage_errors, write_json
from launcher.core.rundir import RunDir
from launcher.data.cache import COLUMN, Column, JoinedCache, Per, TokenCache
from launcher.fingerprint import cache_root

_ABOUT = "about.json"
#: Values of a record by column, for its documents or targets.
Values = Mapping[str, NDArray[Any]]


class ReferenceStore:
    """Columns of `columns` made by the model that `identity` tells, in `root`."""

    def __init__(self, root: Path, identity: Sequence[Any], columns: Sequence[Column]) -> None:
        self.columns = list(columns)
        self._root, self._identity = root, list(identity)

    def require(self, cache: TokenCache | JoinedCache, records: Iterable[int], run: RunDir) -> None:
        """`DataError` if values of `records` are missing."""
        if missing := self.missing(cache, records):
            again = run.command("eval", more=["--base"], anywhere=True)
            raise DataError(
                f"of {len(missing):,} records nobody knows what the model before training makes of"
                " them: it is not in the cache, deleted or asked for by another version",
                where=str(self._root),
                hint=f"let it make them again: {again}",
            )

    def attach(self, cache: TokenCache | JoinedCache) -> None:
        """Give the records of `cache` the columns; those of records not yet `done` hold zeros.
        Raises `StorageError` where they can be neither read nor made."""
        for part in cache.parts:
            folder = self._folder(part)
            self._make(folder, part)
            for column in self.columns:
                size = _count(part, column) * column.width
                values = _mapped(folder / _file(column), column.stored, size)
                part.attach(column, values)

    def missing(self, cache: TokenCache | JoinedCache, records: Iterable[int]) -> list[int]:
        """Those of `records` whose values are not there yet, ascending."""
        flags = np.concatenate([self._done(part) for part in cache.parts])
        return [record for record in sorted(set(records)) if not flags[record]]

    def add(self, cache: TokenCache | JoinedCache, values: Mapping[int, Values]) -> None:
        """Write the values of records, but of those that have some. For one rank."""
        begin = 0
        for part in cache.parts:
            own = {i - begin: v for i, v in values.items() if begin <= i < begin + len(part)}
            if own:
                self._add(part, own)
            begin += len(part)

    def _add(self, part: TokenCache, values: Mapping[int, Values]) -> None:
        folder = self._folder(part)
        with storage_errors(folder), open_lock(folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            done = np.memmap(folder / "done.bin", np.uint8, "r+")
            new = [record for record in values if not done[record]]
            for column in self.columns:
                kept = np.memmap(folder / _file(column), column.stored, "r+")
                for record in new:
                    where = part.places(column, record)
                    places = slice(where.start * column.width, where.stop * column.width)
                    kept[places] = np.asarray(values[record][column.name]).reshape(-1)
                kept.flush()
            done[new] = 1  # only now: what is flagged is there
            done.flush()

    def _done(self, part: TokenCache) -> NDArray[np.uint8]:
        return _mapped(self._folder(part) / "done.bin", np.uint8, len(part))

    def _folder(self, part: TokenCache) -> Path:
        parts = [part.folder.name, self._identity, [str(column) for column in self.columns]]
        digest = hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
        return self._root / digest

    def _make(self, folder: Path, part: TokenCache) -> None:
        """Files of zeros, which take no room before they are filled, and none that are there."""
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            sizes = {"done.bin": len(part)} | {
                _file(column): _count(part, column) * column.width * column.stored.itemsize
                for column in self.columns
            }
            # What says what they are comes last: until then another rank is still making them.
            if all((folder / name).is_file() for name in (_ABOUT, *sizes)):
                return
            with open_lock(folder / "lock") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                for name, size in sizes.items():
                    with open(folder / name, "ab") as file:
                        file.truncate(size)
                about = {"data": part.folder.name, "model": self._identity}
                write_json(folder / _ABOUT, about)


class References(NamedTuple):
    """What is kept of training records, and what of those that are scored."""

    train: ReferenceStore
    held_out: ReferenceStore

    @classmethod
    def of_run(
        cls, run: RunDir, config: Config, train: Sequence[Column], held_out: Sequence[Column] | None
    ) -> References:
        """Those of the model that a run began with; `DataError` for one that has not begun."""
        kept = read_json(run.reference)
        if not isinstance(kept, dict):
            raise DataError(
                "the run has not asked the model before training yet, on which its objective rests",
                where=str(run),
                hint=f"train it first: {run.command('resume', anywhere=True)}",
            )
        root, model = cache_root(config) / "reference", kept["model"]
        own = ReferenceStore(root, model, train)
        return cls(own, own if held_out is None else ReferenceStore(root, model, held_out))


def _file(column: Column) -> str:
    return f"{COLUMN}{column.name}.bin"


def _count(part: TokenCache, column: Column) -> int:
    """Values of a column in a cache."""
    return part.num_targets if column.per is Per.target else part.num_documents


def _mapped(path: Path, dtype: Any, count: int) -> NDArray[Any]:
    """`count` numbers of a file; `StorageError` if it has not so many."""
    with storage_errors(path):
        size = path.stat().st_size
        if size != count * np.dtype(dtype).itemsize:
            raise StorageError(
                f"{path.name} has {size} bytes, not {count * np.dtype(dtype).itemsize}",
                where=str(path.parent),
                hint=f"delete the folder: rm -r {path.parent}; the values are made again",
            )
        if not size:
            return np.zeros(0, dtype)
        return np.memmap(path, dtype, "r").view(np.ndarray)
