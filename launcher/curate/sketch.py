"""MinHash signatures: fixed-size stand-ins for texts, from which their similarity is estimated.

The similarity of two texts is that of their sets of shingles: shared ones as a share of all
(Jaccard). Shingles are three words in a row, or five characters in short texts and where words are
not set apart by spaces: with three words of a hundred changed, two records are alike by 0.8 still.
The share of equal numbers in two signatures estimates it; with 128 numbers its standard error is
0.035 at a similarity of 0.8.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from launcher.curate import shingles
from launcher.curate.shingles import Hashes

Signatures = npt.NDArray[np.uint32]

#: every number of the signature of a text without a word.
EMPTY = np.uint32(0xFFFFFFFF)
#: words, or characters, in a shingle.
WORDS, CHARACTERS = 3, 5
#: texts with fewer words are compared by characters: of ten words, one changed spoils three of the
#: eight runs of three.
FEW_WORDS = 40
#: mean length of a word from which a text is taken to be one without spaces.
LONG_WORDS = 16
#: shingles at once: what fits a core's cache.
_BLOCK = 1 << 15


@dataclass(frozen=True)
class Sketcher:
    """Makes signatures of `num_perm` numbers; equal settings give equal ones everywhere."""

    num_perm: int = 128
    seed: int = 1
    _factors: Signatures = field(init=False, repr=False, compare=False)
    _offsets: Signatures = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        drawn = hashlib.shake_256(f"minhash {self.seed}".encode()).digest(8 * self.num_perm)
        factors, offsets = np.frombuffer(drawn, "<u4").reshape(2, -1).astype(np.uint32)
        object.__setattr__(self, "_factors", factors | np.uint32(1))
        object.__setattr__(self, "_offsets", offsets)

    def __call__(self, texts: Sequence[str]) -> Signatures:
        """Signatures [texts, num_perm]; that of a text without any word is all `EMPTY`."""
        signatures = np.full((len(texts), self.num_perm), EMPTY)
        for n, rows, runs in _blocks(texts):
            hashes, offsets = shingles.grams(runs, n)
            told = np.flatnonzero(np.diff(offsets))
            if len(told):
                signatures[np.array(rows, np.int64)[told]] = self._minima(hashes, offsets[told])
        return signatures

    def _minima(self, hashes: Hashes, begins: npt.NDArray[np.int64]) -> Signatures:
        short = (hashes >> np.uint64(32)).astype(np.uint32)
        permuted = np.empty_like(short)
        minima = np.empty((self.num_perm, len(begins)), np.uint32)
        for row, factor, offset in zip(minima, self._factors, self._offsets, strict=True):
            np.multiply(short, factor, out=permuted)
            permuted += offset
            np.minimum.reduceat(permuted, begins, out=row)
        return minima.T


def similarity(left: Signatures, right: Signatures) -> npt.NDArray[np.float64]:
    """Estimated similarity of each row of `left` with the same row of `right` (or with its one)."""
    return np.asarray((left == right).mean(axis=-1))


def shingle_set(text: str) -> Hashes:
    """The distinct shingles of a text, ascending: what its signature stands for."""
    n, unit = _units(text)
    return np.unique(shingles.grams([unit], n)[0])


def _units(text: str) -> tuple[int, Hashes]:
    """How many units a shingle has, and the units: hashes of a text's words or characters."""
    found = shingles.words(text)
    joined = sum(map(len, found))
    if len(found) >= FEW_WORDS and joined < LONG_WORDS * len(found):
        return WORDS, shingles.of_words(found)
    return CHARACTERS, shingles.of_characters(" ".join(found))


def _blocks(texts: Sequence[str]) -> Iterator[tuple[int, list[int], list[Hashes]]]:
    """(units of a shingle, indices, units of each) of texts alike in kind, about `_BLOCK` units."""
    blocks: dict[int, tuple[list[int], list[Hashes]]] = {WORDS: ([], []), CHARACTERS: ([], [])}
    sizes = dict.fromkeys(blocks, 0)
    for row, text in enumerate(texts):
        n, unit = _units(text)
        blocks[n][0].append(row)
        blocks[n][1].append(unit)
        sizes[n] += len(unit)
        if sizes[n] >= _BLOCK:
            yield n, *blocks[n]
            blocks[n], sizes[n] = ([], []), 0
    for n, (rows, runs) in blocks.items():
        yield n, rows, runs
