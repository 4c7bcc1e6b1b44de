"""Prepared data of tokens that are at hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from launcher.data.cache import Column, Index, TokenCache
from launcher.data.prepare.writing import CacheWriter


def write(
    folder: Path,
    records: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    max_length: int = 1024,
    file: str = "records",
    weights: Sequence[float] | None = None,
    labels: Sequence[Sequence[str]] | None = None,
) -> TokenCache:
    """Make a cache of (tokens, targets) pairs that are at hand, and open it; `labels` are those of
    a classifier."""
    columns = (Column("label", dtype="json"),) if labels else ()
    with CacheWriter(folder, columns=columns) as writer:
        for line, (tokens, targets) in enumerate(records, 1):
            writer.append(
                np.array(tokens, np.int32),
                np.array(targets, np.uint8),
                np.array([len(tokens)], np.int32),
                np.array([[0, line]], np.int32),
                np.array([weights[line - 1] if weights else 1], np.float32),
                columns={"label": [list(labels[line - 1])]} if labels else {},
            )
        writer.finish(
            Index(key="", files=[file], format="tokens", tokenizer="", max_length=max_length)
        )
    cache = TokenCache.open(folder)
    assert isinstance(cache, TokenCache)
    return cache
