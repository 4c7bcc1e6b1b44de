"""Records as columns of numbers, without their texts: of a chunk, and of all data."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
#: name -> type of the columns with one number a record; `aside` is 1 for training records that
#: are held out, which the rules judge as well but which leak nothing; `rejected` are the characters
#: of a worse answer, -1 without one; `verdict` is 1 for a good answer, 0 for a bad one, else -1.
COLUMNS: dict[str, Any] = {
    "file": np.int32,
    "line": np.int32,
    "chunk": np.int32,
    "bytes": np.int64,
    "chars": np.int32,
    "words": np.int32,
    "answer": np.int32,
    "turns": np.int32,
    "tokens": np.int32,
    "targets": np.int32,
    "flags": np.uint32,
    "left_out": np.uint8,
    "aside": np.uint8,
    "rejected": np.int32,
    "verdict": np.int8,
}


@dataclass(slots=True)
class Bad:
    """A record that cannot be read, and the rule that counts it."""

    file: int
    line: int
    chunk: int
    found: str
    hint: str
    rule: str


@dataclass(slots=True)
class RecordBatch:
    """Columns of the usable records of a chunk, and what is counted rather than kept."""

    columns: dict[str, Array]
    whole: NDArray[np.uint64]
    """Hash of each record, [records, 2]."""
    question: NDArray[np.uint64]
    reply: NDArray[np.uint64]
    sides: NDArray[np.uint64]
    """Hashes of the prompt, and of it with each answer that is judged, [records, 3]."""
    signatures: NDArray[np.uint32]
    labels: list[str | None]
    roles: Counter[str]
    bad: list[Bad]
    hits: tuple[Array, Array] = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    """(record of the batch, gram) of everything that is in the evaluation data too."""
    breaches: list[tuple[int, str, str]] = field(default_factory=list)
    """(line, rule, why) of the profile."""
    pieces: list[list[str]] = field(default_factory=list)
    """Of evaluation records, the texts that are looked for in training."""


@dataclass(slots=True)
class RecordTable:
    """The records of one side, one row each, in the order of the files."""

    columns: dict[str, Array]
    whole: NDArray[np.uint64]
    question: NDArray[np.uint64]
    reply: NDArray[np.uint64]
    sides: NDArray[np.uint64]
    """Hashes of the prompt, and of it with each answer that is judged, [records, 3]."""
    signatures: NDArray[np.uint32]
    label_names: list[str]
    labels: NDArray[np.int32]
    """Index into `label_names`, -1 without a label."""
    bad: list[Bad]
    roles: Counter[str]
    num_bytes: int
    breaches: list[tuple[int, int, str, str]] = field(default_factory=list)
    """(file, line, rule, why) of the profile."""
    hits: tuple[Array, Array] = (np.zeros(0, np.int64), np.zeros(0, np.int64))
    formats: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.whole)

    @property
    def read(self) -> int:
        """Records read, those that cannot be used included."""
        return len(self) + len(self.bad)

    def __getitem__(self, name: str) -> Array:
        return self.columns[name]
