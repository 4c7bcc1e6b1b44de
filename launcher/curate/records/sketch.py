"""MinHash signatures: fixed-size stand-ins for texts, from which their similarity is estimated.

The similarity of two texts is that of their sets of shingles: shared ones as a share of all
(Jaccard). Shingles are three words in a row, or five characters in short texts and where words are
not set apart by spaces: with three words of a hundred changed, two records are alike by 0.8 still.
The share of equal numbers in two signatures estimates it; with 128 numbers its standard error is
at most 0.035 at a similarity of 0.8. The signatures are those of the library `rensa`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.core import runtime
from launcher.curate.records import shingles
from launcher.curate.records.shingles import Hashes
from launcher.curate.records.texts import optional

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

    def __call__(self, texts: Sequence[str]) -> Signatures:
        """Signatures [texts, num_perm]; that of a text without any word is all `EMPTY`."""
        signatures = np.full((len(texts), self.num_perm), EMPTY)
        for n, rows, runs in _blocks(texts):
            hashes, offsets = shingles.grams(runs, n)
            told = np.flatnonzero(np.diff(offsets))
            if len(told):
                ends = np.append(offsets[told], offsets[-1])
                signatures[np.array(rows, np.int64)[told]] = self._minima(hashes, ends)
        return signatures

    def _minima(self, hashes: Hashes, offsets: npt.NDArray[np.int64]) -> Signatures:
        made = _library().RMinHash.digest_matrix_from_flat_token_hashes(
            hashes, offsets.astype(np.uint64), self.num_perm, self.seed
        )
        return np.array(made.to_rows(), np.uint32)


@cache
def _library() -> Any:
    runtime.single_threaded_rayon()
    return optional("rensa")


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
