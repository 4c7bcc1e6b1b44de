"""Labels that the other records contradict: a text that is like those of another class.

Each record is compared with the mean text of every class, made without the record's own fold. What
is closer to another class than that class's own records usually are, and far from the class that it
is said to be of, is suspected. This finds blunders, not fine distinctions.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from launcher.curate.records import shingles
from launcher.curate.scan.scan import Scan

FOLDS = 5
#: Columns that words and pairs of words are hashed into.
WIDTH = 1 << 14
#: With more records or classes, or fewer records a class, this says nothing or takes too long.
MOST_RECORDS, MOST_CLASSES, LEAST_OF_CLASS = 200_000, 2000, 5
#: Shares of the usual likeness to a class: from which a record is close to it, below which far.
CLOSE, FAR = 0.75, 0.2

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A training record and the label that its text speaks for."""

    row: int
    likely: str


def suspects(scan: Scan) -> list[Suspect]:
    """Training records whose label is likely to be wrong, in order."""
    labels = scan.train.labels
    rows = np.flatnonzero(labels >= 0)
    sizes = np.bincount(labels[rows], minlength=len(scan.train.label_names))
    classes = np.count_nonzero(sizes)
    if not 2 <= classes <= MOST_CLASSES or not LEAST_OF_CLASS * classes <= len(rows):
        return []
    if len(rows) > MOST_RECORDS:
        return []
    records = scan.fetch(rows.tolist())
    return [
        Suspect(int(rows[i]), scan.train.label_names[likely])
        for i, likely in contradicted([records[i].prompt for i in rows.tolist()], labels[rows])
    ]


def contradicted(texts: Sequence[str], labels: NDArray[np.int32]) -> Iterator[tuple[int, int]]:
    """(index, likely label) of the texts whose label [texts] the others contradict."""
    vectors = _vectors(texts)
    count = int(labels.max()) + 1
    likeness = np.zeros((len(texts), count), np.float32)
    folds = np.arange(len(texts)) % FOLDS
    for fold in range(FOLDS):
        means = _means(vectors, labels, folds != fold, count)
        for i in np.flatnonzero(folds == fold).tolist():
            columns, weights = vectors[i]
            likeness[i] = means[:, columns] @ weights
    every = np.arange(len(texts))
    own = likeness[every, labels]
    sums = np.bincount(labels, own, minlength=count)
    usual = sums / np.maximum(1, np.bincount(labels, minlength=count))
    best = likeness.argmax(axis=1)
    is_other = (best != labels) & (likeness[every, best] >= CLOSE * usual[best])
    for i in np.flatnonzero(is_other & (own < FAR * usual[labels])).tolist():
        yield i, int(best[i])


def _vectors(texts: Sequence[str]) -> list[tuple[NDArray[np.int64], Floats]]:
    """Columns and tf-idf weights of each text, of length one."""
    found = [np.unique(_columns(text), return_counts=True) for text in texts]
    met = np.bincount(np.concatenate([columns for columns, _ in found]), minlength=WIDTH)
    rarity = np.log((1 + len(texts)) / (1 + met)).astype(np.float32)
    vectors = []
    for columns, counts in found:
        weights = (1 + np.log(counts)).astype(np.float32) * rarity[columns]
        vectors.append((columns, weights / max(1e-9, float(np.linalg.norm(weights)))))
    return vectors


def _columns(text: str) -> NDArray[np.int64]:
    words = shingles.words(text)
    terms = [*words, *(f"{a} {b}" for a, b in pairwise(words))]
    return np.array([zlib.crc32(term.encode("utf-8", "replace")) % WIDTH for term in terms], int)


def _means(
    vectors: Sequence[tuple[NDArray[np.int64], Floats]],
    labels: NDArray[np.int32],
    chosen: NDArray[np.bool_],
    count: int,
) -> Floats:
    """Mean vector of each class among the chosen texts, of length one [classes, WIDTH]."""
    means = np.zeros((count, WIDTH), np.float32)
    for i in np.flatnonzero(chosen).tolist():
        columns, weights = vectors[i]
        means[labels[i], columns] += weights
    lengths = np.linalg.norm(means, axis=1, keepdims=True)
    means /= np.where(lengths > 0, lengths, 1)
    return means
