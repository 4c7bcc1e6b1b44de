"""Texts as sets of hashed n-grams: what near-duplicates and leaks are found by.

Two texts that differ in case, punctuation, white space or Unicode's compatibility forms are the
same here. Hashes are equal in every process, on every machine and with every version of Python.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

_WORD = re.compile(r"\w+")
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_MIX = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))
_SHIFT = np.uint64(33)
#: words that are remembered with their hashes; a text has few that others have not.
_MEMORY = 1 << 19


def words(text: str) -> list[str]:
    """The words of a text, folded in case and form."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return _WORD.findall(text.casefold())


class _WordHashes(dict[str, int]):
    def __missing__(self, word: str) -> int:
        if len(self) >= _MEMORY:
            self.clear()
        # Half of a pair of surrogates can stand in a text, but in no UTF-8.
        code = word.encode("utf-8", "surrogatepass")
        value = self[word] = int.from_bytes(blake2b(code, digest_size=8).digest(), "little")
        return value


_hashes = _WordHashes()


def of_words(found: Sequence[str]) -> Hashes:
    """One hash for each word."""
    return np.fromiter(map(_hashes.__getitem__, found), np.uint64, len(found))


def of_characters(text: str) -> Hashes:
    """One number for each character; none of them is the hash of a word but by chance."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    return _mixed(codes + _PRIME)


def grams(units: Sequence[Hashes], n: int) -> tuple[Hashes, npt.NDArray[np.int64]]:
    """(hashes of all runs of `n` units, where those of each text begin) of texts in turn.

    A text of fewer than `n` units, but at least one, has a single gram of all of them; the second
    array has one number more than there are texts.
    """
    lengths = np.fromiter(map(len, units), np.int64, len(units))
    padded = np.where(lengths > 0, np.maximum(lengths, n), 0)
    begins = np.concatenate(([0], np.cumsum(padded)))
    flat = np.zeros(int(begins[-1]), np.uint64)
    for begin, unit in zip(begins, units, strict=False):
        flat[begin : begin + len(unit)] = unit
    counts = np.where(padded > 0, padded - n + 1, 0)
    offsets = np.concatenate(([0], np.cumsum(counts)))
    if not len(flat):
        return flat, offsets
    rolled = np.zeros(len(flat) - n + 1, np.uint64)
    for k in range(n):
        rolled *= _PRIME
        rolled += flat[k : k + len(rolled)]
    # Runs over the end of a text are left out.
    shift = np.repeat(begins[:-1] - offsets[:-1], counts)
    return _mixed(rolled[np.arange(int(offsets[-1])) + shift]), offsets


def _mixed(values: Hashes) -> Hashes:
    """Spread every bit over all others (the finaliser of MurmurHash3); changes `values`."""
    for factor in _MIX:
        values ^= values >> _SHIFT
        values *= factor
    values ^= values >> _SHIFT
    return values
