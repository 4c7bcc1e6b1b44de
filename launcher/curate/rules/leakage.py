"""Evaluation records that occur in training, and which training records they occur in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from launcher.config.schema.data_report import ReportConfig
from launcher.curate.rules import duplicates
from launcher.curate.rules.duplicates import Indices
from launcher.curate.scan.grams import MIN_TEXT, Held
from launcher.curate.scan.table import RecordTable

#: What shows a leak, the surest first.
KINDS = ("exact", "grams", "near")
#: Sequences from which an evaluation text is a document, that several training records may hold
#: the pieces of; a short one whose sequences are scattered merely follows a pattern.
DOCUMENT = 200


@dataclass(frozen=True, slots=True)
class Leaks:
    """Pairs of a training and an evaluation record."""

    train: Indices
    evaluation: Indices
    kind: NDArray[np.int8]
    """The surest of `KINDS` that shows the pair, as an index."""
    by_kind: tuple[Indices, ...]
    """For each of `KINDS` the evaluation records that it shows to be leaked."""


def find(train: RecordTable, held: Held, settings: ReportConfig) -> Leaks:
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


def _same(questions: NDArray[np.uint64], held: RecordTable) -> tuple[Indices, Indices]:
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


def _sharing(train: RecordTable, held: Held, share: float) -> tuple[Indices, Indices]:
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
