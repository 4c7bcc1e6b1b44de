"""How a row is cut among ranks, without any."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.errors import ConfigError
from launcher.data.pack.loader import Row
from launcher.model.sequence_parallel import SequenceGroup, Stretches, cut

NOBODY: Any = None


def row_of(lengths: list[int], learned: set[int]) -> Row:
    """A row of documents with these lengths, where the tokens behind these positions are learned
    if they are of the same document."""
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    count = int(starts[-1])
    index = torch.tensor(
        sorted(i for i in learned if i + 1 < count and i + 1 not in starts.tolist()),
        dtype=torch.int64,
    )
    ids = torch.arange(100, 100 + count)
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
        weights=torch.linspace(0.0, 1.0, len(index)),
    )


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=8),
    st.sets(st.integers(0, 71)),
    st.integers(2, 8),
)
def test_stretches_are_the_row_one_behind_the_other(
    lengths: list[int], learned: set[int], size: int
) -> None:
    row = row_of(lengths, learned)
    parts = [cut(row, SequenceGroup(size, index, NOBODY)) for index in range(size)]
    count = max(sum(lengths), size)
    whole = torch.cat([part.input_ids for part in parts])
    assert len(whole) == count
    assert torch.equal(whole[: sum(lengths)], row.input_ids)
    positions = torch.cat([part.position_ids for part in parts])
    assert torch.equal(positions[: sum(lengths)], row.position_ids)
    assert torch.equal(torch.cat([part.targets for part in parts]), row.targets)
    assert row.weights is not None
    weights = [part.weights for part in parts if part.weights is not None]
    assert torch.equal(torch.cat(weights), row.weights)
    first = 0
    for part, tokens in zip(parts, parts[0].stretches.lengths, strict=True):
        assert len(part.input_ids) == tokens >= count // size
        assert torch.equal(part.target_index + first, row.target_index[part.part])
        assert part.counts == tuple(len(own.targets) for own in parts)
        starts = part.document_starts
        assert torch.equal(starts[: len(lengths) + 1], row.document_starts)
        assert int(starts[-1]) == count
        assert part.longest >= int(starts.diff().max())
        first += tokens


@pytest.mark.parametrize(
    ("queries", "keys", "size", "found"),
    [(8, 8, 2, 8), (8, 2, 2, 2), (8, 2, 4, 4), (8, 1, 4, 4), (6, 3, 2, 6), (12, 3, 2, 6)],
)
def test_each_rank_has_the_keys_that_its_queries_read(
    queries: int, keys: int, size: int, found: int
) -> None:
    """Query q reads key q // (queries / keys); so it must among those of its rank."""
    stretches = Stretches(SequenceGroup(size, 0, NOBODY), (1,) * size)
    heads = stretches.key_heads(queries, keys)
    assert heads == found
    repeated = torch.arange(keys).repeat_interleave(heads // keys)
    for rank in range(size):
        own = repeated.chunk(size)[rank]
        for place in range(queries // size):
            query = rank * (queries // size) + place
            assert own[place // (queries // heads)] == query // (queries // keys)


def test_heads_that_ranks_cannot_share_are_named() -> None:
    with pytest.raises(ConfigError, match="4 ranks a row, which cannot share the 6") as error:
        Stretches(SequenceGroup(4, 0, NOBODY), (1,) * 4).key_heads(6, 6)
    assert error.value.problems[0].hint.endswith("engine.sequence_parallel=3")
