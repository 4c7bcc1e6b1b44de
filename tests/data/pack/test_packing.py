"""Packing: every record once an epoch, within capacity, in an order that is a pure function."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.data.pack.mixture import records_of
from launcher.data.pack.packing import PackedOrder, best_fit_decreasing, permute

CAPACITY = 32
LENGTHS = st.lists(st.integers(1, CAPACITY), min_size=1, max_size=120)
MODES = st.tuples(st.booleans(), st.booleans())


def epoch(order: PackedOrder, number: int) -> list[list[int]]:
    first = number * order.num_packs
    return [order.pack(first + i).tolist() for i in range(order.num_packs)]


@given(LENGTHS, st.integers(0, 5), MODES)
def test_every_record_once_in_every_epoch_within_capacity(
    lengths: list[int], seed: int, mode: tuple[bool, bool]
) -> None:
    shuffle, packing = mode
    order = PackedOrder(np.array(lengths), CAPACITY, seed, shuffle=shuffle, packing=packing)
    for number in (0, 1, 7):
        packs = epoch(order, number)
        assert sorted(record for pack in packs for record in pack) == list(range(len(lengths)))
        for pack in packs:
            assert 0 < sum(lengths[record] for record in pack) <= CAPACITY
            assert packing or len(pack) == 1


@given(LENGTHS, st.integers(0, 2**63), st.lists(st.integers(0, 500), max_size=10), MODES)
def test_any_pack_is_found_without_the_others(
    lengths: list[int], seed: int, places: list[int], mode: tuple[bool, bool]
) -> None:
    shuffle, packing = mode

    def make() -> PackedOrder:
        return PackedOrder(np.array(lengths), CAPACITY, seed, shuffle=shuffle, packing=packing)

    walked = make()
    in_order = [walked.pack(i).tolist() for i in range(501)]
    for place in places:
        assert make().pack(place).tolist() == in_order[place]


@given(LENGTHS, st.integers(0, 200), st.integers(0, 200), MODES)
def test_records_of_packs_are_all_that_are_in_them(
    lengths: list[int], begin: int, count: int, mode: tuple[bool, bool]
) -> None:
    shuffle, packing = mode
    order = PackedOrder(np.array(lengths), CAPACITY, 3, shuffle=shuffle, packing=packing)
    packs = range(begin, begin + count)  # of several epochs, from the middle of one
    known = {record for pack in packs for record in order.pack(pack).tolist()}
    assert records_of(order, packs, len(lengths)) == sorted(known)


@given(LENGTHS)
def test_number_of_packs_depends_on_the_lengths_alone(lengths: list[int]) -> None:
    forward = PackedOrder(np.array(lengths), CAPACITY, seed=0)
    backward = PackedOrder(np.array(lengths[::-1]), CAPACITY, seed=9)
    assert forward.num_packs == backward.num_packs
    assert forward.fill == sum(lengths) / (forward.num_packs * CAPACITY)


@given(LENGTHS)
def test_patterns_are_best_fit_decreasing(lengths: list[int]) -> None:
    bins: list[list[int]] = []
    for length in sorted(lengths, reverse=True):
        fitting = [b for b in bins if sum(b) + length <= CAPACITY]
        if fitting:
            max(fitting, key=sum).append(length)
        else:
            bins.append([length])
    counts = np.bincount(lengths, minlength=CAPACITY + 1).tolist()
    patterns = best_fit_decreasing(counts, CAPACITY)
    placed = [0] * (CAPACITY + 1)
    for items, number in patterns:
        for length, copies in items:
            placed[length] += copies * number
    assert placed == counts
    # Ties may be broken otherwise, so contents can differ; how full the bins are cannot.
    filled = sorted(
        sum(length * copies for length, copies in items)
        for items, number in patterns
        for _ in range(number)
    )
    assert filled == sorted(map(sum, bins))


def test_epochs_differ_in_order_and_in_company() -> None:
    lengths = np.random.default_rng(0).integers(1, CAPACITY, 400)
    order = PackedOrder(lengths, CAPACITY, seed=3)
    first, second = epoch(order, 0), epoch(order, 1)
    assert first != second
    assert {frozenset(pack) for pack in first} != {frozenset(pack) for pack in second}
    assert epoch(PackedOrder(lengths, CAPACITY, seed=4), 0) != first


GOLDEN = [[4, 5], [0, 2, 8], [1, 7], [3, 6], [9], [0, 2, 8], [1, 6], [9], [3, 7], [4, 5]]


def test_order_is_the_same_on_every_machine_and_version() -> None:
    """A run that resumes under another numpy or launcher must see the same packs."""
    lengths = np.array([5, 9, 3, 9, 14, 2, 7, 7, 1, 16])
    order = PackedOrder(lengths, 16, seed=1)
    assert [order.pack(i).tolist() for i in range(2 * order.num_packs)] == GOLDEN


def test_without_shuffle_records_keep_their_order() -> None:
    order = PackedOrder(np.array([4, 4, 4, 8, 1, 8]), 10, seed=0, shuffle=False)
    assert epoch(order, 0) == [[0, 1], [2], [3, 4], [5]]
    assert epoch(order, 5) == epoch(order, 0)


@pytest.mark.parametrize("lengths", [[], [0, 3], [3, 11]])
def test_lengths_outside_the_capacity_are_refused(lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="lengths"):
        PackedOrder(np.array(lengths, dtype=np.int32), 10, seed=0)


@given(st.integers(1, 300), st.lists(st.integers(0, 2**64 - 1), min_size=6, max_size=6))
def test_permute_is_a_permutation(size: int, keys: list[int]) -> None:
    assert sorted(permute(i, size, tuple(keys)) for i in range(size)) == list(range(size))


def test_permutations_are_even() -> None:
    """Every record takes every place about equally often over epochs (chi-square, fixed seeds)."""
    order = PackedOrder(np.full(7, 10), 10, seed=11)
    seen = np.zeros((7, 7))
    epochs = 2100
    for number in range(epochs):
        for place, (record,) in enumerate(epoch(order, number)):
            seen[place, record] += 1
    expected = epochs / 7
    chi_square = ((seen - expected) ** 2 / expected).sum()
    assert chi_square < 68.7  # 36 degrees of freedom, p = 0.001


def test_a_million_lengths_are_packed_well() -> None:
    lengths = np.random.default_rng(0).lognormal(5, 0.6, 1_000_000).clip(1, 1024).astype(np.int32)
    order = PackedOrder(lengths, 1024, seed=0)
    assert order.fill > 0.99
    ids = np.concatenate([order.pack(order.num_packs * 1000 + i) for i in range(2000)])
    assert len(np.unique(ids)) == len(ids)
