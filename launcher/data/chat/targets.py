"""Which tokens hold the characters that are learned."""

from __future__ import annotations

import unicodedata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.data.chat.template import Span
from launcher.data.words import byte_lengths


class ByteMap:
    """Tokens of spans for a byte-level tokenizer, which needs no offsets of the library."""

    def __init__(self, backend: Any) -> None:
        self._lengths = byte_lengths(backend)

    def lengths(self, tokens: NDArray[np.int32]) -> NDArray[np.int64]:
        """Bytes of text that each token stands for; zeros where tokens have no fixed ones."""
        if self._lengths is None:
            return np.zeros(len(tokens), np.int64)
        return self._lengths[tokens]

    def spans(self, text: str, spans: list[Span], num_bytes: int) -> list[Span] | None:
        """The spans in bytes, if the tokens of `text`, which stand for `num_bytes`, are all of
        it."""
        if self._lengths is None:
            return None
        if text.isascii():
            return spans if len(text) == num_bytes else None
        if len(text.encode()) != num_bytes or not unicodedata.is_normalized("NFC", text):
            return None
        return [(len(text[:begin].encode()), len(text[:end].encode())) for begin, end in spans]


def mark(targets: NDArray[np.uint8], ends: NDArray[np.int64], spans: list[Span]) -> None:
    """Set the flags of tokens that hold a byte of `spans`; those that straddle a border do.

    `ends` is [tokens + 1]: how many bytes there are up to each token.
    """
    if not spans:
        return
    begins, stops = np.array(spans, np.int64).T
    firsts = np.searchsorted(ends[1:], begins, side="right").tolist()
    lasts = np.searchsorted(ends[:-1], stops, side="left").tolist()
    for first, last in zip(firsts, lasts, strict=True):
        targets[first:last] = 1


def mark_by_offsets(targets: NDArray[np.uint8], encoding: Any, spans: list[Span]) -> None:
    """The same with the offsets in characters that the library gives."""
    for span in spans:
        first, last = _token_range(encoding, *span)
        targets[first:last] = 1


def _token_range(encoding: Any, begin: int, end: int) -> tuple[int, int]:
    """The tokens that hold characters [begin, end), those that straddle a border included."""
    first, last = encoding.char_to_token(begin), encoding.char_to_token(end - 1)
    if first is None or last is None:  # the tokenizer drops that character, e.g. white space
        inside = [i for i, (a, b) in enumerate(encoding.offsets) if a < end and b > begin]
        return (inside[0], inside[-1] + 1) if inside else (0, 0)
    # A character of several bytes may take several tokens; the first of them was found.
    while (chars := encoding.token_to_chars(last + 1)) and chars[0] < end and chars[1] > begin:
        last += 1
    return first, last + 1
