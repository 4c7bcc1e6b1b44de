"""Tokens by words are those of the library, whatever the text."""

from __future__ import annotations

import functools
import sys
import unicodedata
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    processors,
    trainers,
)
from tokenizers import pre_tokenizers as pre

from launcher.data import words
from launcher.data.chat.targets import ByteMap, mark, mark_by_offsets
from support.draws import examples

QWEN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CASES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
KINDS = ("gpt2", "qwen", "three digits", "cases")
TEXT = "The quick brown fox's 12345 tails:\n\n  `x = y[0]`  <|end|> don't\t日本語 Übung 🙂" * 3


@functools.cache
def make(kind: str) -> Any:
    """A small tokenizer that cuts words as a family of models does."""
    tokenizer = Tokenizer(models.BPE())
    patterns = {
        "qwen": QWEN,
        "three digits": QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|"),
        "cases": CASES,
    }
    if kind in patterns:
        cut = pre.Split(Regex(patterns[kind]), "isolated", invert=False)
        plain = pre.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre.Sequence([cut, plain])
        tokenizer.normalizer = normalizers.NFC()
    else:
        tokenizer.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = sorted(pre.ByteLevel.alphabet())
    options = {"vocab_size": 420, "initial_alphabet": alphabet, "show_progress": False}
    tokenizer.train_from_iterator([TEXT], trainers.BpeTrainer(**options))
    names = ("<|end|>", "<|en", "<tool>")
    tokenizer.add_tokens([AddedToken(n, normalized=False, special=True) for n in names])
    return tokenizer


def texts() -> st.SearchStrategy[str]:
    known = "aZ s'tS1 9\t\n\r.,;<|>end()[]{}`\"-éßЖ日ぁ가£“”…ſ\u00a0\u0301🙂\x00\x1c\x85"
    pieces = st.sampled_from(["<|end|>", "<|en", "<tool>", "don't", "DON'T", "  ", "\r\n", "12345"])
    return st.lists(st.text(st.sampled_from(known)) | pieces | st.text(), max_size=12).map("".join)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(150), deadline=None)
@given(text=texts())
def test_ids_are_those_of_the_library(kind: str, text: str) -> None:
    found = words.Words.make(make(kind))
    assert found is not None
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    ids = found.ids(text)
    if text.isascii() and text.replace("\n", "").replace("\t", "").replace("\r", "").isprintable():
        assert ids is not None
    if ids is not None:
        assert ids == make(kind).encode(text, add_special_tokens=False).ids


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_character_that_is_taken(kind: str) -> None:
    found = words.Words.make(make(kind))
    assert found is not None
    characters = [chr(i) for i in range(sys.maxunicode + 1) if not 0xD800 <= i < 0xE000]
    taken = [c for c in characters if not words._UNSURE(c)]
    assert 20_000 < len(taken) < 40_000
    assert all(unicodedata.normalize("NFC", c) == c for c in taken)
    for at in range(0, len(taken), 500):
        text = "".join(f"a{c}1{c}{c} {c}'{c}\n{c}." for c in taken[at : at + 500])
        assert found.ids(text) == make(kind).encode(text, add_special_tokens=False).ids


def test_what_it_is_not_for() -> None:
    spaced = Tokenizer.from_str(make("gpt2").to_str())
    spaced.pre_tokenizer = pre.ByteLevel(add_prefix_space=True)
    lower = Tokenizer.from_str(make("gpt2").to_str())
    lower.normalizer = normalizers.Lowercase()
    eats = Tokenizer.from_str(make("gpt2").to_str())
    eats.add_tokens([AddedToken("<eats>", lstrip=True, normalized=False)])
    both = Tokenizer.from_str(make("gpt2").to_str())
    both.add_tokens([AddedToken("<both>", normalized=True)])
    pieces = Tokenizer(models.BPE({"a": 0}, [], byte_fallback=True))
    pieces.add_special_tokens(["<s>"])
    for other in (spaced, lower, eats, both, pieces):
        assert words.Words.make(other) is None


def test_long_words_are_not_remembered() -> None:
    found = words.Words.make(make("gpt2"))
    assert found is not None
    text = "日" * 1000
    assert found.ids(text) == make("gpt2").encode(text, add_special_tokens=False).ids
    assert not found._table


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(100), deadline=None)
@given(text=texts(), places=st.lists(st.integers(0, 200), min_size=2, max_size=2))
def test_targets_by_bytes_are_those_by_offsets(kind: str, text: str, places: list[int]) -> None:
    text = text.encode(errors="ignore").decode()
    begin, end = sorted(min(place, len(text)) for place in places)
    encoding = make(kind).encode(text, add_special_tokens=False)
    tokens = np.array(encoding.ids, np.int32)
    bytewise = ByteMap(make(kind))
    ends = np.concatenate([[0], np.cumsum(bytewise.lengths(tokens))])
    spans = bytewise.spans(text, [(begin, end)], int(ends[-1])) if begin < end else None
    if spans is None:  # not in normal form C
        assert begin == end or text != unicodedata.normalize("NFC", text)
        return
    found, expected = np.zeros(len(tokens), np.uint8), np.zeros(len(tokens), np.uint8)
    mark(found, ends, spans)
    mark_by_offsets(expected, encoding, [(begin, end)])
    assert found.tolist() == expected.tolist()
