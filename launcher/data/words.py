"""Token ids of a text from those of its words, exactly as the tokenizers library gives them.

A byte-level BPE tokenizer cuts a text at its added tokens, what lies between into words by a
regular expression, and gives a word the same tokens wherever it stands. Words come again and
again, so their tokens are remembered; each word is tokenised by the library once. Where the
library might see a text in another way (another kind of tokenizer, characters on whose properties
versions of Unicode could differ) the answer is None, and the library has to be asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Words that a table remembers (8 MB), and their longest: unspaced text has words without end.
MAX_WORDS = 1 << 15
MAX_WORD = 48

#: All but long-known letters, digits and punctuation that no normal form changes: Latin, Greek,
#: Cyrillic, kana, Han, Hangul. The long s is out, for it equals an s where case is ignored.
_UNSURE = re.compile(
    "[^\t\n\r -~\u00a1-\u00ac\u00ae-\u017e\u0391-\u03a1\u03a3-\u03a9\u03b1-\u03c9\u0410-\u044f"
    "\u2010\u2013\u2014\u2018\u2019\u201c\u201d\u2022\u2026\u20ac\u3001-\u3002\u3041-\u3096"
    "\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3\uff01\uff08\uff09\uff0c\uff1a\uff1b\uff1f]"
).search
_GPT2 = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"  # of ByteLevel
)


class Words:
    """Tokens by words. `make` gives one where the tokenizer is of the right kind."""

    def __init__(self, backend: Any, find: Callable[[str], list[str]]) -> None:
        self._table = _Table(backend)
        self._find = find
        added = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
        self._added = added
        longest_first = sorted(added, key=len, reverse=True)
        self._cut = re.compile(f"({'|'.join(map(re.escape, longest_first))})").split

    @classmethod
    def make(cls, backend: Any) -> Words | None:
        """For a backend of the tokenizers library; None if words alone do not decide its ids."""
        parts = json.loads(backend.to_str())
        pattern = _pattern(parts["pre_tokenizer"])
        added = parts["added_tokens"]
        if not added or pattern is None or not is_byte_level(parts) or parts["model"]["dropout"]:
            return None
        if any(token[key] for token in added for key in ("lstrip", "rstrip", "single_word")):
            return None
        # Those of either kind are looked for in a pass of their own.
        if len({token["normalized"] for token in added}) > 1 or backend.encode_special_tokens:
            return None
        try:
            import regex  # type: ignore[import-untyped]  # of transformers

            return cls(backend, regex.compile(pattern).findall)
        except (ImportError, regex.error):
            return None

    def ids(self, text: str) -> list[int] | None:
        """Token ids without those that a post-processor adds; None if the library must be asked."""
        if _UNSURE(text):
            return None
        found: list[int] = []
        known, find = self._table.__getitem__, self._find
        for number, part in enumerate(self._cut(text)):
            if number % 2:
                found.append(self._added[part])
            elif part:
                found.extend(chain.from_iterable(map(known, find(part))))
        return found


class _Table(dict[str, tuple[int, ...]]):
    """Tokens of words, asked of the library where they are missing."""

    def __init__(self, backend: Any) -> None:
        super().__init__()
        from tokenizers.pre_tokenizers import ByteLevel

        self._bytes = ByteLevel(add_prefix_space=False, use_regex=False)
        self._model = backend.model

    def __missing__(self, word: str) -> tuple[int, ...]:
        pieces = self._bytes.pre_tokenize_str(word)
        ids = tuple(token.id for piece, _ in pieces for token in self._model.tokenize(piece))
        if len(word) <= MAX_WORD and len(self) < MAX_WORDS:
            self[word] = ids
        return ids


def is_byte_level(parts: dict[str, Any]) -> bool:
    """Whether the tokens of a text that is in normal form C are its bytes; `parts` is the
    tokenizer as JSON."""
    model, normalizer = parts["model"], parts["normalizer"]
    return (
        model["type"] == "BPE"
        and not any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix"))
        and not model.get("byte_fallback")
        and (parts["decoder"] or {}).get("type") == "ByteLevel"
        and (normalizer is None or normalizer["type"] == "NFC")
    )


def byte_lengths(backend: Any) -> NDArray[np.int64] | None:
    """[largest id + 1]: bytes of text that each token stands for; None where that is not fixed."""
    if not is_byte_level(json.loads(backend.to_str())):
        return None
    added = backend.get_added_tokens_decoder()
    vocabulary = backend.get_vocab(with_added_tokens=True)
    found = np.zeros(max(vocabulary.values()) + 1, np.int64)
    for token, i in vocabulary.items():
        # One character of a token's name stands for one byte.
        found[i] = len(added[i].content.encode()) if i in added else len(token)
    return found


def _pattern(pre_tokenizer: dict[str, Any] | None) -> str | None:
    """The regular expression of words."""
    steps = [pre_tokenizer or {}]
    if steps[0].get("type") == "Sequence":
        steps = steps[0]["pretokenizers"]
    if steps[-1].get("type") != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return None
    if len(steps) == 1:
        return _GPT2 if steps[0]["use_regex"] else None
    cut = steps[0]
    plain = len(steps) == 2 and not steps[1]["use_regex"] and cut["type"] == "Split"
    if not plain or cut["behavior"] != "Isolated" or cut["invert"]:
        return None
    pattern: str | None = cut["pattern"].get("Regex")
    return pattern
