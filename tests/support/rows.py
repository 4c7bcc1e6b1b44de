"""Rows of random documents for a model, without a cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from launcher.data.pack.loader import Row


def make_row(
    lengths: Sequence[int],
    vocab: int,
    *,
    seed: int = 0,
    learns: Callable[[int], bool] = lambda position: True,
) -> Row:
    """One document a record, of these lengths, of tokens from 3 to `vocab`; what follows each
    position that `learns` is a target, within its document."""
    total = sum(lengths)
    starts = torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32)
    ids = torch.randint(3, vocab, (total,), generator=torch.Generator().manual_seed(seed))
    last = set((starts[1:] - 1).tolist())
    index = torch.tensor([i for i in range(total) if i not in last and learns(i)])
    return Row(
        input_ids=ids,
        position_ids=torch.cat([torch.arange(n) for n in lengths]),
        document_starts=starts,
        target_index=index,
        targets=ids[index + 1],
        longest=max(lengths),
        records=list(range(len(lengths))),
        packs=[0],
        sizes=[1] * len(lengths),
    )
