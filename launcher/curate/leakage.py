"""Evaluation records that occur in training, and which training records they occur in.

`Grams` holds all runs of `n` words of the evaluation records (of a shorter record: all its words
together). Training texts are searched for them, in any number of processes; `shares` then says how
much of each evaluation record was met. Runs that many evaluation records have in common are an
instruction or a form, not a leak, and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from launcher.config.schema.data_report import ReportConfig
from launcher.curate import duplicates, shingles
from launcher.curate.duplicates import Indices
from launcher.curate.item import Item
from launcher.curate.shingles import Hashes
from launcher.curate.table import Table

#: What shows a leak, the surest first.
KINDS = ("exact", "grams", "near")
#: Sequences from which an evaluation text is a document, that several training records may hold
#: the pieces of; a short one whose sequences are scattered merely follows a pattern.
DOCUMENT = 200
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
    owners: NDArray[np.int32]
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

    def shares(self, met: NDArray[np.bool_]) -> NDArray[np.float64]:
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

    table: Table
    grams: Grams
    owners: NDArray[np.int32]
    """Evaluation record of each text in `grams`."""


def evaluated(item: Item) -> list[str]:
    """The texts of an evaluation record that are looked for: its question, or what it has
    instead."""
    if len(item.prompt.split()) >= MIN_QUESTION:
        return [item.prompt]
    if item.prompt and len(item.answer.split()) < MIN_TEXT:
        return []
    parts = [part for part in item.answer.split("\n") if len(part.split()) >= MIN_TEXT]
    return [item.answer] if item.roles or len(parts) < 2 else [item.answer, *parts]


@dataclass(frozen=True, slots=True)
class Leaks:
    """Pairs of a training and an evaluation record."""

    train: Indices
    evaluation: Indices
    kind: NDArray[np.int8]
    """The surest of `KINDS` that shows the pair, as an index."""
    by_kind: tuple[Indices, ...]
    """For each of `KINDS` the evaluation records that it shows to be leaked."""


def find(train: Table, held: Held, settings: ReportConfig) -> Leaks:
    """All leaks: the same question, shared word sequences, or near-duplicates.

    Short texts are often alike: for them only the same question counts.
    """
    if not len(train) or not len(held.table):
        none = np.zeros(0, np.int64)
        return Leaks(none, none, np.zeros(0, np.int8), (none, none, none))
    # What is held out is in the evaluation data by design.
    side = np.flatnonzero(train["aside"] == 0)
    rows, others = duplicates.across(
        train.signatures[side], held.table.signatures, settings.near_duplicate
    )
    long_enough = held.table["words"][others] >= MIN_TEXT
    near = side[rows[long_enough]], others[long_enough]
    same = _same(train.question[side], held.table)
    grams = _sharing(train, held, settings.leak_share)
    found = [(side[same[0]], same[1]), grams, near]
    rows, others = (np.concatenate([pair[side] for pair in found]) for side in (0, 1))
    kinds = np.repeat(np.arange(len(KINDS), dtype=np.int8), [len(pair[0]) for pair in found])
    # Of equal pairs the first is kept: the one of the surest kind.
    _, first = np.unique(others * len(train) + rows, return_index=True)
    by_kind = tuple(np.unique(pair[1]) for pair in found)
    return Leaks(rows[first], others[first], kinds[first], by_kind)


def _same(questions: NDArray[np.uint64], held: Table) -> tuple[Indices, Indices]:
    """Pairs with the same question, or where there is none with the same text."""
    by_question = np.argsort(questions, kind="stable")
    return _join(questions[by_question], by_question, held.question)


def _join(
    keys: NDArray[np.uint64], rows: Indices, wanted: NDArray[np.uint64]
) -> tuple[Indices, Indices]:
    begins, ends = (np.searchsorted(keys, wanted, side) for side in ("left", "right"))
    counts = ends - begins
    steps = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows[np.repeat(begins, counts) + steps], np.repeat(np.arange(len(wanted)), counts)


def _sharing(train: Table, held: Held, share: float) -> tuple[Indices, Indices]:
    """Pairs of which the training record alone holds that share of the other's sequences, and for
    documents that several together hold, the one that holds most."""
    grams, (rows, met_grams) = held.grams, train.hits
    trained = train["aside"][rows] == 0
    rows, met_grams = rows[trained], met_grams[trained]
    if not len(rows):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    met = np.zeros(len(grams), bool)
    met[met_grams] = True
    leaked = grams.shares(met) >= share
    sizes = np.bincount(grams.owners, minlength=grams.records)
    counts = np.diff(grams.begins)[met_grams]
    begins = grams.begins[:-1][met_grams]
    steps = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    owners = grams.owners[np.repeat(begins, counts) + steps].astype(np.int64)
    holders = np.repeat(rows, counts)
    holders, owners = holders[leaked[owners]], owners[leaked[owners]]
    if not len(owners):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    pairs, shared = np.unique(owners * len(train) + holders, return_counts=True)
    owners, holders = pairs // len(train), pairs % len(train)
    held_share = shared / sizes[owners]
    most = np.zeros(grams.records)
    np.maximum.at(most, owners, held_share)
    scattered = (sizes[owners] >= DOCUMENT) & (held_share >= most[owners])
    kept = (held_share >= share) | scattered
    return holders[kept], held.owners[owners[kept]].astype(np.int64)


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
