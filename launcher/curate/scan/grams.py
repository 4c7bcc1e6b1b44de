"""Runs of words of evaluation records, which training texts are searched for.

`Grams` holds all runs of `n` words of the evaluation records (of a shorter record: all its words
together). Training texts are searched for them, in any number of processes; `shares` then says how
much of each evaluation record was met. Runs that many evaluation records have in common are an
instruction or a form, not a leak, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from launcher.curate.records import shingles
from launcher.curate.records.record import Record
from launcher.curate.records.shingles import Hashes
from launcher.curate.scan.table import RecordTable

Indices = npt.NDArray[np.int64]

#: Words that a question needs, and an answer or a whole text, to be looked for by its sequences.
MIN_QUESTION, MIN_TEXT = 5, 13
#: words in a run, as in most published checks of contamination.
WORDS = 13
#: a run in more evaluation records than this says nothing about one of them.
COMMON = 10
_BLOCK = 4096


@dataclass(frozen=True)
class Grams:
    """Runs of words of evaluation records; small enough to be sent to every process."""

    n: int
    values: Hashes
    """The distinct runs, ascending."""
    begins: Indices
    """Where the records of each run begin in `owners`; one more than there are runs."""
    owners: npt.NDArray[np.int32]
    """Indices of evaluation records."""
    records: int
    """Number of evaluation records."""

    @classmethod
    def build(cls, texts: Iterable[str], n: int = WORDS, common: int = COMMON) -> Grams:
        """Grams of evaluation texts, without those in more than `common` of them."""
        values, owners, count = [np.empty(0, np.uint64)], [np.empty(0, np.int32)], 0
        for block in _blocks(texts):
            hashes, offsets = _grams(block, n)
            values.append(hashes)
            numbers = np.arange(count, count + len(block), dtype=np.int32)
            owners.append(np.repeat(numbers, np.diff(offsets)))
            count += len(block)
        pairs = np.empty(sum(map(len, values)), [("value", np.uint64), ("owner", np.int32)])
        pairs["value"], pairs["owner"] = np.concatenate(values), np.concatenate(owners)
        pairs = np.unique(pairs)
        distinct, counts = np.unique(pairs["value"], return_counts=True)
        rare = counts <= common
        kept = np.repeat(rare, counts)
        begins = np.concatenate(([0], np.cumsum(counts[rare])))
        return cls(n, distinct[rare], begins, pairs["owner"][kept], count)

    def __len__(self) -> int:
        return len(self.values)

    def find(self, texts: Sequence[str]) -> tuple[Indices, Indices]:
        """(index of the text, position in `values`) of every gram met, once for each text."""
        hashes, offsets = _grams(texts, self.n)
        if not len(self.values) or not len(hashes):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        places = np.minimum(np.searchsorted(self.values, hashes), len(self.values) - 1)
        hit = self.values[places] == hashes
        rows = np.repeat(np.arange(len(texts)), np.diff(offsets))[hit]
        pairs = np.unique(rows * len(self.values) + places[hit])
        return pairs // len(self.values), pairs % len(self.values)

    def shares(self, met: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
        """For each evaluation record the share of its grams that `met` [len(self)] marks.

        0 for a record all of whose grams are common ones.
        """
        counts = np.diff(self.begins)
        total = np.bincount(self.owners, minlength=self.records)
        found = np.bincount(self.owners, np.repeat(met, counts), minlength=self.records)
        return np.divide(found, total, out=np.zeros(self.records), where=total > 0)


@dataclass(slots=True)
class Held:
    """Evaluation records: held out of the training data, a validation split, or benchmarks."""

    table: RecordTable
    grams: Grams
    owners: npt.NDArray[np.int32]
    """Evaluation record of each text in `grams`."""


def evaluated(record: Record) -> list[str]:
    """The texts of an evaluation record that are looked for: its question, or what it has
    instead."""
    if len(record.prompt.split()) >= MIN_QUESTION:
        return [record.prompt]
    if record.prompt and len(record.answer.split()) < MIN_TEXT:
        return []
    parts = [part for part in record.answer.split("\n") if len(part.split()) >= MIN_TEXT]
    return [record.answer] if record.roles or len(parts) < 2 else [record.answer, *parts]


def _grams(texts: Sequence[str], n: int) -> tuple[Hashes, Indices]:
    return shingles.grams([shingles.of_words(shingles.words(text)) for text in texts], n)


def _blocks(texts: Iterable[str]) -> Iterable[list[str]]:
    block: list[str] = []
    for text in texts:
        block.append(text)
        if len(block) == _BLOCK:
            yield block
            block = []
    yield block
