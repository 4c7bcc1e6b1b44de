"""What the tokens of a tokenizer.json are, to compare two tokenizers. Standard library only."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FILE = "tokenizer.json"


def read(folder: Path) -> dict[str, int] | None:
    """Token -> number, added and special tokens included; None without a file that tells."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        found = dict(_numbers(content["model"]["vocab"]))
        added = {str(token["content"]): int(token["id"]) for token in content["added_tokens"]}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {**found, **added}


def _numbers(vocab: Any) -> dict[str, int]:
    """Unigram models list their pieces with scores, others map them to numbers."""
    if isinstance(vocab, Mapping):
        return {str(token): int(number) for token, number in vocab.items()}
    return {str(piece): number for number, (piece, _) in enumerate(vocab)}


def difference(one: Mapping[str, int], other: Mapping[str, int]) -> str | None:
    """What tells two vocabularies apart, for people; None if they are the same."""
    if one == other:
        return None
    token = min(
        (token for token in one.keys() | other.keys() if one.get(token) != other.get(token)),
        key=lambda token: (min(numbers.get(token, 1 << 62) for numbers in (one, other)), token),
    )
    said = [
        f"{len(numbers):,} tokens"
        + (f" with {token!r} as number {numbers[token]}" if token in numbers else f", no {token!r}")
        for numbers in (one, other)
    ]
    return f"{said[0]}, and {said[1]}"
