"""Prepared data of tokens that are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from launcher.data.cache import Index, TokenCache
from launcher.data.writing import CacheWriter


def write(
    folder: Path,
    records: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    max_length: int = 1024,
    file: str = "records",
    weights: Sequence[float] | None = None,
    labels: Sequence[Sequence[str]] | None = None,
) -> TokenCache:
    """Make a cache of (tokens, targets) pairs that are at hand, and open it."""
    known = list(dict.fromkeys(map(tuple, labels or ())))
    with CacheWriter(folder) as writer:
        for line, (tokens, targets) in enumerate(records, 1):
            writer.append(
                np.array(tokens, np.int32),
                np.array(targets, np.uint8),
                np.array([len(tokens)], np.int32),
                np.array([[0, line]], np.int32),
                np.array([weights[line - 1] if weights else 1], np.float32),
                np.array([known.index(tuple(labels[line - 1]))], np.int32) if labels else None,
            )
        writer.finish(
            Index(
                key="",
                files=[file],
                format="tokens",
                tokenizer="",
                max_length=max_length,
                labels=list(map(list, known)),
            )
        )
    cache = TokenCache.open(folder)
    assert isinstance(cache, TokenCache)
    return cache
