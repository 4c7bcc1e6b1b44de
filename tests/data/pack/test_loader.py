"""Rows: the same packs for every cut of the global batch, and no document sees another."""

import tempfile
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.data.cache import TokenCache
from launcher.data.pack.loader import LEAST_SHARED, Ahead, Loader, Row, make_row, rectangles
from launcher.data.pack.packing import PackedOrder
from support import caches

RECORDS = st.lists(
    st.lists(st.tuples(st.integers(0, 999), st.booleans()), min_size=1, max_size=12),
    min_size=1,
    max_size=30,
)


def write(folder: Path, records: list[list[tuple[int, bool]]]) -> TokenCache:
    pairs = [([t for t, _ in record], [int(f) for _, f in record]) for record in records]
    return caches.write(folder, pairs, max_length=16)


@pytest.fixture
def cache(tmp_path: Path) -> TokenCache:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 17, 200)
    return write(
        tmp_path / "cache",
        [list(zip(rng.integers(0, 999, n), rng.integers(0, 2, n), strict=True)) for n in lengths],
    )


def loader(cache: TokenCache, rank: int, world: int, micro: int, total: int = 24) -> Loader:
    order = PackedOrder(cache.lengths, 16, seed=5)
    return Loader(
        cache,
        order,
        global_sequences=total,
        micro_batch=micro,
        accumulation=total // world // micro,
        rank=rank,
        world_size=world,
    )


CUTS = [(1, 24), (1, 1), (1, 4), (2, 3), (2, 12), (3, 2), (4, 6), (8, 3), (24, 1)]


def test_rows_made_ahead_are_those_of_their_step(cache: TokenCache) -> None:
    plain = loader(cache, 1, 2, 3)
    made: list[int] = []

    class Watched:
        def step(self, step: int) -> list[Row]:
            assert threading.current_thread() is not threading.main_thread()
            made.append(step)
            return plain.step(step)

    ahead = Ahead(Watched(), lambda row: replace(row, longest=row.longest + 1))
    for step in (5, 6, 7, 2, 3):  # a run goes on from a checkpoint, and may go back to one
        for got, wanted in zip(ahead.step(step), plain.step(step), strict=True):
            assert got.records == wanted.records
            assert torch.equal(got.input_ids, wanted.input_ids)
            assert got.longest == wanted.longest + 1
    assert made[:4] == [5, 6, 7, 8]


def test_a_step_that_cannot_be_made_ahead_fails_when_it_is_asked_for() -> None:
    class Broken:
        def step(self, step: int) -> list[Row]:
            if step == 1:
                raise OSError("the disk is gone")
            return []

    ahead = Ahead(Broken(), lambda row: row)
    assert ahead.step(0) == []
    with pytest.raises(OSError, match="the disk is gone"):
        ahead.step(1)


@pytest.mark.parametrize(("world", "micro"), CUTS)
def test_every_cut_of_a_step_has_the_same_packs(cache: TokenCache, world: int, micro: int) -> None:
    order = PackedOrder(cache.lengths, 16, seed=5)
    for step in (0, 1, 40):
        rows = [row for r in range(world) for row in loader(cache, r, world, micro).step(step)]
        assert len(rows) == 24 // micro
        packs = [pack for row in rows for pack in row.packs]
        assert sorted(packs) == list(range(step * 24, (step + 1) * 24))
        records = sorted(record for row in rows for record in row.records)
        assert records == sorted(np.concatenate([order.pack(p) for p in packs]).tolist())


def test_ranks_take_every_nth_pack_and_micro_batches_the_next_of_those(cache: TokenCache) -> None:
    rows = loader(cache, rank=1, world=2, micro=3, total=12).step(2)
    assert [row.packs for row in rows] == [[25, 27, 29], [31, 33, 35]]


def test_a_step_is_a_pure_function_of_its_number(cache: TokenCache) -> None:
    walked = loader(cache, 0, 2, 4)
    for step in range(5):
        rows = walked.step(step)
    fresh = loader(cache, 0, 2, 4).step(4)
    for a, b in zip(rows, fresh, strict=True):
        assert a.records == b.records
        assert torch.equal(a.input_ids, b.input_ids)


def test_a_batch_that_cannot_be_cut_is_refused(cache: TokenCache) -> None:
    order = PackedOrder(cache.lengths, 16, seed=5)
    with pytest.raises(ValueError, match="global batch of 7"):
        Loader(
            cache,
            order,
            global_sequences=7,
            micro_batch=2,
            accumulation=2,
            rank=0,
            world_size=2,
        )


def check(row: Row, cache: TokenCache) -> None:
    """Compare a row with the records it is made of, one by one."""
    starts = row.document_starts.tolist()
    assert starts[0] == 0
    assert starts[-1] == len(row.input_ids) == len(row.position_ids)
    expected: list[tuple[int, int]] = []
    for record, begin, end in zip(row.records, starts, starts[1:], strict=False):
        tokens, flags = cache.record(record)
        assert row.input_ids[begin:end].tolist() == tokens.tolist()
        assert row.position_ids[begin:end].tolist() == list(range(end - begin))
        # The next token of the same document is predicted; its first token never is.
        expected += [(begin + i - 1, int(tokens[i])) for i in range(1, end - begin) if flags[i]]
    assert list(zip(row.target_index.tolist(), row.targets.tolist(), strict=True)) == expected


@pytest.mark.thorough
@settings(max_examples=50)
@given(RECORDS, st.data())
def test_rows_restart_positions_and_shift_targets_within_documents(
    records: list[list[tuple[int, bool]]], data: st.DataObject
) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(records) - 1), min_size=1, max_size=8))
    with tempfile.TemporaryDirectory() as folder:
        cache = write(Path(folder), records)
        check(make_row(cache, chosen), cache)


def test_types_and_devices(cache: TokenCache) -> None:
    (row,) = loader(cache, 0, 1, 24).step(0)
    check(row, cache)
    for name in ("input_ids", "position_ids", "target_index", "targets"):
        assert getattr(row, name).dtype == torch.int64
    assert row.document_starts.dtype == torch.int32
    moved = row.to("meta")
    assert moved.targets.device.type == "meta"
    assert moved.records == row.records


def test_making_a_row_leaves_the_cache_as_it_was(cache: TokenCache) -> None:
    make_row(cache, list(range(len(cache))))
    TokenCache.open(cache.folder, verify=True)


@given(st.lists(st.integers(2, 30), min_size=1, max_size=12), st.booleans(), st.data())
@settings(deadline=None)
def test_rectangles_hold_the_row_and_little_padding(
    lengths: list[int], equal: bool, data: st.DataObject
) -> None:
    flags = [data.draw(st.lists(st.integers(0, 1), min_size=n, max_size=n)) for n in lengths]
    records = [(list(range(100 * i, 100 * i + n)), flags[i]) for i, n in enumerate(lengths)]
    with tempfile.TemporaryDirectory() as folder:
        cache = caches.write(Path(folder) / "cache", records, max_length=64)
        row = make_row(cache, range(len(lengths)))
    parts = rectangles(row, equal=equal)
    if equal:
        kinds = [set(part.document_starts.diff().tolist()) for part in parts]
        assert sorted(n for (n,) in kinds) == sorted(set(lengths))
    learned: list[int] = []
    for part in parts:
        number = len(part.document_starts) - 1
        assert number * part.longest <= max(len(row.input_ids), part.longest)
        assert torch.equal(part.targets, part.input_ids[part.target_index + 1])
        assert part.position_ids.tolist() == [
            i for start, end in pairwise(part.document_starts.tolist()) for i in range(end - start)
        ]
        for record, (start, end) in zip(
            part.records, pairwise(part.document_starts.tolist()), strict=True
        ):
            assert part.input_ids[start:end].tolist() == records[record][0]
        learned += part.targets.tolist()
    assert sorted(r for part in parts for r in part.records) == list(range(len(lengths)))
    assert sorted(learned) == sorted(row.targets.tolist())


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_row_is_whole_again_once_what_is_shared_is_spread(data: st.DataObject) -> None:
    """Of each token that is left out another one stands in its place, with the same beginning."""
    token = st.integers(0, 2)
    beginnings = data.draw(st.lists(st.lists(token, max_size=14), min_size=1, max_size=3))
    document = st.tuples(st.sampled_from(beginnings), st.lists(token, min_size=1, max_size=12)).map(
        lambda pair: pair[0] + pair[1]
    )
    records = data.draw(
        st.lists(st.lists(document, min_size=1, max_size=4), min_size=1, max_size=4)
    )
    share = data.draw(st.sampled_from([0.2, 0.8, 1.0]))

    class Records:
        columns: dict[str, Any] = {}
        is_weighted = False

        def record(self, i: int) -> Any:
            tokens = np.concatenate([np.array(one, np.int32) for one in records[i]])
            flags = np.random.default_rng(i).random(len(tokens)) < share
            return tokens, flags.astype(np.uint8)

        def documents(self, i: int) -> list[int]:
            return list(map(len, records[i]))

        column = weight = None

    row = make_row(Records(), range(len(records)))  # type: ignore[arg-type]
    begins = row.document_starts.tolist()
    common = 0
    for own in records:
        for one, other in pairwise(own):
            most = min(len(one), len(other)) - 1
            alike = next((k for k in range(most) if one[k] != other[k]), most)
            common += alike if alike >= LEAST_SHARED else 0
    shared = row.sharing
    if shared is None:
        assert not common or len(row.targets) == len(row.input_ids) - common
        return
    assert len(shared.kept) == len(row.input_ids) - common
    for values in (row.input_ids, row.position_ids):
        assert torch.equal(values[shared.kept][shared.where], values)
    assert torch.equal(shared.where[shared.kept], torch.arange(len(shared.kept)))
    counts = shared.document_starts.diff()
    assert shared.longest == int(counts.max())
    assert int(counts.min()) > 0
    for begin, end in pairwise(begins):
        places = shared.kept[shared.where[begin:end]].tolist()
        for count, place in enumerate(places):  # what lies before it in its document is the same
            start = place - count
            assert start in begins
            same = row.input_ids[start : place + 1], row.input_ids[begin : begin + count + 1]
            assert torch.equal(*same)
        own = int(counts[begins.index(begin)])
        assert places[len(places) - own :] == list(range(end - own, end))
