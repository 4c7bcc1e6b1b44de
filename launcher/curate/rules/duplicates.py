"""Records that are said twice: exact ones by hash, near ones by MinHash and banding; and those that
ask the same and answer differently.

A cluster of near-duplicates is a record and later ones that resemble *it*, so that whoever keeps
the first of each cluster drops nothing without a near-duplicate of it being kept. Only chains of
more than `CHAIN` records, each like the next, stay in one piece.

Everything is sorted arrays: a million signatures of 128 numbers take 0.5 GB, and the search among
them less than that again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.curate.records.shingles import Hashes
from launcher.curate.records.sketch import EMPTY, Signatures, shingle_set, similarity

Indices = npt.NDArray[np.int64]
Texts = Callable[[Indices], Iterable[str]]

#: least probability that a pair exactly at the threshold is looked at.
SOUGHT = 0.995
#: most records of one bucket of which all pairs are compared; of others, neighbours only.
WINDOW = 8
#: records in one chain that are sorted out leader by leader.
CHAIN = 4096
#: error of an estimate that is reckoned with: three standard errors of 128 numbers.
MARGIN = 0.1
#: most pairs whose similarity is computed; the estimates of others stand.
CHECKS = 300_000
#: pairs compared at once: what fits a core's cache.
_BLOCK = 1 << 10


def exact(hashes: Hashes) -> list[Indices]:
    """Clusters, in order of their first record, of equal rows of `hashes` [records, 2]."""
    order = np.lexsort(hashes.T[::-1])
    same = (hashes[order[1:]] == hashes[order[:-1]]).all(axis=1)
    return _in_order(_runs(order, same))


def conflicting(prompts: Hashes, answers: Hashes) -> list[Indices]:
    """Groups of all records that ask the same and answer differently: one prompt, several answers.

    Both are hashes, [records] or [records, words]. Groups stand in order of their first record, the
    records of a group in theirs.
    """
    if not len(prompts):
        return []
    prompt_ids, answer_ids = _numbered(prompts), _numbered(answers)
    order = np.lexsort((answer_ids, prompt_ids))
    asked, answered = prompt_ids[order], answer_ids[order]
    begins = np.flatnonzero(np.concatenate(([True], asked[1:] != asked[:-1])))
    ends = np.append(begins[1:], len(order))
    # Within a group answers are sorted: the first and the last one differ if any two do.
    torn = answered[begins] != answered[ends - 1]
    groups = [
        np.sort(order[begin:end])
        for begin, end in zip(begins[torn].tolist(), ends[torn].tolist(), strict=True)
    ]
    return sorted(groups, key=lambda group: int(group[0]))


def near(signatures: Signatures, threshold: float, texts: Texts | None = None) -> list[Indices]:
    """Clusters, in order of their first record, of records alike by at least `threshold`.

    Records without any word (see `sketch.EMPTY`) are in none. Similarities are estimates, which
    close to the threshold err to both sides; with `texts`, which reads the texts of ascending
    records, those close to it are computed from the shingles.
    """
    firsts, same_as = _distinct(signatures)
    parents = np.arange(len(signatures), dtype=np.int64)
    # Eight bits of each number rule most pairs out, in half the time.
    low = signatures.astype(np.uint8)
    tables = ((low, low), (signatures, signatures))
    lowest = threshold if texts is None else threshold - MARGIN
    for keys in _bands(signatures, firsts, threshold):
        left, right = _candidates(keys, firsts)
        apart = parents[left] != parents[right]
        left, right = _alike(tables, left[apart], right[apart], lowest)
        _join(parents, left, right)
    chains = _equal(firsts, parents[firsts])
    check = Check(signatures, threshold)
    if texts is not None:
        check.read(chains, texts)
    leaders = np.arange(len(signatures), dtype=np.int64)
    for chain in chains:
        for cluster in _stars(check, chain):
            leaders[cluster] = cluster[0]
    return _in_order(_equal(np.arange(len(signatures)), leaders[same_as]))


def across(signatures: Signatures, others: Signatures, threshold: float) -> tuple[Indices, Indices]:
    """(rows of `signatures`, rows of `others`) that are alike by at least `threshold`.

    Each row of `others` is in it at most once, with the most similar one that was found.
    """
    both = np.arange(len(signatures)), np.arange(len(others))
    rows, columns = (
        all_rows[(table != EMPTY).any(axis=1)]
        for all_rows, table in zip(both, (signatures, others), strict=True)
    )
    best = np.zeros(len(others))
    found = np.full(len(others), -1, np.int64)
    pairs_of_bands = zip(
        _bands(signatures, rows, threshold), _bands(others, columns, threshold), strict=True
    )
    for keys, wanted in pairs_of_bands:
        left, right = _lookup(keys, rows, wanted, columns)
        left, right = _alike([(signatures, others)], left, right, threshold)
        score = similarity(signatures[left], others[right])
        for i in np.argsort(score, kind="stable"):
            if score[i] > best[right[i]]:
                best[right[i]], found[right[i]] = score[i], left[i]
    hit = np.flatnonzero(found >= 0)
    return found[hit], hit


class Check:
    """Says which records are alike: by their signatures, and by their shingles where it is close.

    The shingles of a record take less memory than its signature unless it is a long one.
    """

    def __init__(self, signatures: Signatures, threshold: float) -> None:
        self.signatures = signatures
        self.threshold = threshold
        self.left = CHECKS
        self._sets: dict[int, Hashes] = {}

    def read(self, chains: list[Indices], texts: Texts) -> None:
        """Keep the shingles of these records."""
        rows = np.sort(np.concatenate([np.empty(0, np.int64), *chains]))
        for row, text in zip(rows.tolist(), texts(rows), strict=True):
            self._sets[row] = shingle_set(text)

    def alike(self, record: int, others: Indices) -> npt.NDArray[np.bool_]:
        """For each of `others` whether it is like `record`."""
        size = self.signatures.shape[1]
        estimates = np.count_nonzero(self.signatures[others] == self.signatures[record], axis=1)
        result = estimates >= _least(self.threshold, size)
        if record in self._sets:
            close = np.flatnonzero(abs(estimates / size - self.threshold) <= MARGIN)[: self.left]
            self.left -= len(close)
            for i in close.tolist():
                result[i] = self._exact(record, int(others[i])) >= self.threshold
        return np.asarray(result)

    def _exact(self, one: int, other: int) -> float:
        shared = len(np.intersect1d(self._sets[one], self._sets[other], assume_unique=True))
        return shared / (len(self._sets[one]) + len(self._sets[other]) - shared)


def bands(num_perm: int, threshold: float) -> tuple[int, int]:
    """(bands, numbers in each) that find a pair at the threshold with probability `SOUGHT`.

    The most numbers a band that do so: more of them mean fewer pairs looked at in vain.
    """
    for rows in range(num_perm, 1, -1):
        count = num_perm // rows
        if 1 - (1 - threshold**rows) ** count >= SOUGHT:
            return count, rows
    return num_perm, 1


def _bands(signatures: Signatures, rows: Indices, threshold: float) -> Iterator[Hashes]:
    """For each band, one hash of its numbers for each of `rows`."""
    count, width = bands(signatures.shape[1], threshold)
    factor = np.uint64(0x9E3779B97F4A7C15)
    for band in range(count):
        keys = np.zeros(len(rows), np.uint64)
        for column in range(band * width, (band + 1) * width):
            keys ^= signatures[rows, column]
            keys *= factor
            keys ^= keys >> np.uint64(29)
        yield keys


def _distinct(signatures: Signatures) -> tuple[Indices, Indices]:
    """(first record of each signature but the empty one, for every record the first like it)."""
    rows = np.flatnonzero((signatures != EMPTY).any(axis=1))
    keys = np.zeros((len(rows), 2), np.uint64)
    for column in range(signatures.shape[1]):
        keys[:, column % 2] ^= signatures[rows, column]
        keys[:, column % 2] *= np.uint64(0x9E3779B97F4A7C15)
        keys[:, column % 2] ^= keys[:, column % 2] >> np.uint64(29)
    same_as = np.arange(len(signatures), dtype=np.int64)
    for copies in exact(keys):
        same_as[rows[copies]] = rows[copies[0]]
    return rows[same_as[rows] == rows], same_as


def _candidates(keys: Hashes, rows: Indices) -> tuple[Indices, Indices]:
    """Pairs of `rows` in one bucket: all of a small bucket, near neighbours of a large one."""
    order = np.argsort(keys, kind="stable")
    sorted_keys = keys[order]
    lefts, rights = [], []
    for distance in range(1, min(WINDOW, len(order) - 1) + 1):
        hit = np.flatnonzero(sorted_keys[distance:] == sorted_keys[:-distance])
        if not len(hit):
            break
        lefts.append(rows[order[hit]])
        rights.append(rows[order[hit + distance]])
    empty = np.empty(0, np.int64)
    return np.concatenate([empty, *lefts]), np.concatenate([empty, *rights])


def _lookup(
    keys: Hashes, rows: Indices, wanted: Hashes, columns: Indices
) -> tuple[Indices, Indices]:
    """Pairs of a row and a column with equal keys; of a large bucket the first rows only."""
    order = np.argsort(keys, kind="stable")
    begins = np.searchsorted(keys, wanted, "left", sorter=order)
    counts = np.searchsorted(keys, wanted, "right", sorter=order) - begins
    counts = np.minimum(counts, WINDOW)
    steps = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
    return rows[order[np.repeat(begins, counts) + steps]], np.repeat(columns, counts)


def _alike(
    tables: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]],
    left: Indices,
    right: Indices,
    threshold: float,
) -> tuple[Indices, Indices]:
    """Those of the pairs of rows that agree by at least the threshold in each pair of tables."""
    for one, other in tables:
        least = _least(threshold, one.shape[1])
        kept = np.zeros(len(left), bool)
        for begin in range(0, len(left), _BLOCK):
            part = slice(begin, begin + _BLOCK)
            equal = one[left[part]] == other[right[part]]
            kept[part] = np.count_nonzero(equal, axis=1) >= least
        left, right = left[kept], right[kept]
    return left, right


def _least(threshold: float, size: int) -> int:
    """How many of `size` numbers must agree, as a whole number: 0.7 * 10 is more than 7."""
    return math.ceil(threshold * size - 1e-9)


def _join(parents: Indices, left: Indices, right: Indices) -> None:
    """Make one tree of the trees of each pair; every record points straight at its first one."""
    while len(left):
        one, other = parents[left], parents[right]
        apart = one != other
        left, right, one, other = left[apart], right[apart], one[apart], other[apart]
        np.minimum.at(parents, np.maximum(one, other), np.minimum(one, other))
        while (parents[parents] != parents).any():
            parents[:] = parents[parents]


def _stars(check: Check, chain: Indices) -> Iterator[Indices]:
    """Clusters around the first record, then around the first of those not like it, and so on."""
    if len(chain) > CHAIN:
        yield chain
        return
    while len(chain) > 1:
        inside = check.alike(int(chain[0]), chain)
        if inside.sum() > 1:
            yield chain[inside]
        chain = chain[~inside]


def _equal(rows: Indices, marks: Indices) -> list[Indices]:
    """Two and more `rows` with one mark."""
    order = np.argsort(marks, kind="stable")
    return _runs(rows[order], marks[order[1:]] == marks[order[:-1]])


def _runs(order: Indices, same: npt.NDArray[np.bool_]) -> list[Indices]:
    """Runs of two and more of `order`, ascending; `same[i]`: its i-th and next are of one run."""
    ends = np.flatnonzero(np.diff(np.concatenate(([False], same, [False])).astype(np.int8)))
    return [
        np.sort(order[begin : end + 1])
        for begin, end in zip(ends[::2].tolist(), ends[1::2].tolist(), strict=True)
    ]


def _in_order(clusters: list[Indices]) -> list[Indices]:
    return sorted(clusters, key=lambda cluster: int(cluster[0]))


def _numbered(hashes: Hashes) -> Indices:
    """A small number for each row, equal where rows are."""
    if hashes.ndim > 1 and hashes.shape[1] == 1:
        hashes = hashes[:, 0]
    axis = 0 if hashes.ndim > 1 else None
    return np.asarray(np.unique(hashes, axis=axis, return_inverse=True)[1], np.int64).reshape(-1)
