"""Which records share a sequence, and in what order sequences are trained on.

A pure function of (lengths, max length, seed, epoch): it knows nothing of ranks, so the order
survives a change of world size, and any position is found without walking to it.

The bins depend only on how many records there are of each length (best fit decreasing, worked out
on that histogram), so every epoch has the same number of packs. What an epoch changes is which
record takes which place among those of its length, and the order of the packs. Both are
permutations computed for one index at a time (a small Feistel network), so an epoch costs nothing
to start, whatever its size. They are built on integer arithmetic and BLAKE2 only: no version of
numpy can change the order under a run that resumes.
"""

from __future__ import annotations

import functools
import hashlib
import struct
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from launcher.data.pack.ordering import by_length

_MASK = (1 << 64) - 1
_ROUNDS = 6

#: What one bin holds, as (length, how many of it), longest first; and how many bins hold just that.
Pattern = tuple[tuple[tuple[int, int], ...], int]


class _Layout(Protocol):
    num_packs: int

    def records(self, place: int, seed: int, epoch: int) -> NDArray[np.int64]: ...


@dataclass(frozen=True, slots=True)
class Sizes:
    """Lengths of all records, in the forms that the layouts need; a cache has them ready."""

    counts: NDArray[np.int64]
    """[longest + 1]: how many records there are of each length."""
    offsets: Callable[[], NDArray[np.int64]]
    """[records + 1]: sum of the lengths before each record."""
    by_length: Callable[[], NDArray[np.int64]]
    """Record ids by length, those of one length in their order."""

    @classmethod
    def of(cls, lengths: NDArray[np.integer]) -> Sizes:
        """Sizes of records that are at hand."""
        lengths = np.asarray(lengths)
        if len(lengths) == 0 or int(lengths.min()) < 0:
            nothing = np.zeros(0, np.int64)
            return cls(nothing, lambda: nothing, lambda: nothing)
        return cls(
            np.bincount(lengths),
            lambda: np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
            lambda: by_length(lengths, int(lengths.max())),
        )


class PackedOrder:
    """The endless sequence of packs; pack `i` lies in epoch `i // num_packs`.

    `lengths` is int [records], each within 1..max_length (`ValueError` otherwise). With
    `packing=False` every record is a pack of one. With `shuffle=False` records keep their order and
    fill one pack after another.
    """

    def __init__(
        self,
        lengths: NDArray[np.integer] | Sizes,
        max_length: int,
        seed: int,
        shuffle: bool = True,
        packing: bool = True,
    ) -> None:
        sizes = lengths if isinstance(lengths, Sizes) else Sizes.of(lengths)
        counts = sizes.counts
        num_records = int(counts.sum())
        if not num_records or counts[0] or len(counts) - 1 > max_length:
            raise ValueError(f"there must be records, with lengths within 1..{max_length}")
        self.max_length = max_length
        self.seed = seed
        self.num_tokens = int((counts * np.arange(len(counts))).sum())
        self._shuffle = shuffle
        self._layout: _Layout
        if not packing:
            self._layout = _Singles(num_records)
        elif shuffle:
            self._layout = _Bins(counts, sizes.by_length, max_length)
        else:
            self._layout = _Runs(sizes.offsets(), max_length)
        self.num_packs = self._layout.num_packs

    @property
    def fill(self) -> float:
        """Share of the capacity (packs times max length) that holds tokens."""
        return self.num_tokens / (self.num_packs * self.max_length)

    def pack(self, index: int) -> NDArray[np.int64]:
        """Record ids, int64 [1 or more], of pack `index`; any index from 0 on, without end."""
        epoch, place = divmod(index, self.num_packs)
        if self._shuffle:
            place = permute(place, self.num_packs, round_keys(self.seed, epoch, 0))
        return self._layout.records(place, self.seed, epoch)


def permute(index: int, size: int, keys: tuple[int, ...]) -> int:
    """Image of `index` under the pseudo-random permutation of range(size) that `keys` selects."""
    bits = (size - 1).bit_length()
    low = bits // 2
    low_mask, high_mask = (1 << low) - 1, (1 << (bits - low)) - 1
    while (
        True
    ):  # the network permutes a power of two: walk on until back in range, < 2 turns on average
        a, b = index & low_mask, index >> low
        for turn in range(0, _ROUNDS, 2):
            a ^= _mix(b ^ keys[turn]) & low_mask
            b ^= _mix(a ^ keys[turn + 1]) & high_mask
        index = b << low | a
        if index < size:
            return index


def _mix(x: int) -> int:
    """SplitMix64's finaliser (Steele et al. 2014): every input bit reaches every output bit."""
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31


@functools.lru_cache(maxsize=1 << 16)
def round_keys(seed: int, epoch: int, group: int) -> tuple[int, ...]:
    """Keys of one permutation. `group` is a record length, 0 for the order of the packs, or
    negative for a block of a mixture."""
    digest = hashlib.blake2b(b"%d %d %d" % (seed, epoch, group), digest_size=8 * _ROUNDS).digest()
    return struct.unpack(f"<{_ROUNDS}Q", digest)


class _Singles:
    """Every record is a pack of one."""

    def __init__(self, num_records: int) -> None:
        self.num_packs = num_records

    def records(self, place: int, seed: int, epoch: int) -> NDArray[np.int64]:
        return np.array([place], dtype=np.int64)


class _Runs:
    """Consecutive records fill a pack until the next one does not fit."""

    def __init__(self, offsets: NDArray[np.int64], max_length: int) -> None:
        starts = [0]
        while starts[-1] < len(offsets) - 1:
            room = int(offsets[starts[-1]]) + max_length
            starts.append(int(np.searchsorted(offsets, room, side="right")) - 1)
        self._starts = np.array(starts, np.int64)
        self.num_packs = len(starts) - 1

    def records(self, place: int, seed: int, epoch: int) -> NDArray[np.int64]:
        return np.arange(self._starts[place], self._starts[place + 1], dtype=np.int64)


class _Bins:
    """Best fit decreasing; bins of equal content lie side by side, described by one pattern."""

    def __init__(
        self, counts: NDArray[np.int64], by_length: Callable[[], NDArray[np.int64]], max_length: int
    ) -> None:
        self._ids = by_length
        self._by_length: NDArray[np.int64] | None = None
        self._counts: list[int] = counts.tolist()
        self._first: list[int] = [0, *np.cumsum(counts).tolist()]
        #: per pattern: (length, copies in a bin, how many of this length earlier patterns hold)
        self._patterns: list[list[tuple[int, int, int]]] = []
        self._starts: list[int] = []
        self.num_packs = 0
        taken = [0] * len(self._counts)
        for items, num_bins in best_fit_decreasing(self._counts, max_length):
            self._patterns.append([(length, copies, taken[length]) for length, copies in items])
            for length, copies in items:
                taken[length] += copies * num_bins
            self._starts.append(self.num_packs)
            self.num_packs += num_bins

    def records(self, place: int, seed: int, epoch: int) -> NDArray[np.int64]:
        which = bisect_right(self._starts, place) - 1
        row = place - self._starts[which]
        found = []
        for length, copies, earlier in self._patterns[which]:
            keys = round_keys(seed, epoch, length)
            begin = earlier + row * copies
            for index in range(begin, begin + copies):
                found.append(self._first[length] + permute(index, self._counts[length], keys))
        if self._by_length is None:  # the number of packs alone does not need it
            self._by_length = self._ids()
        return self._by_length[found]


def best_fit_decreasing(counts: list[int], capacity: int) -> list[Pattern]:
    """Bins of `capacity` for `counts[length]` items of each length, as patterns.

    Best fit decreasing puts each item into the fullest bin that takes it, so the next item of that
    length goes into the same bin while it fits, and bins with equal room are all treated alike:
    whole groups of them move at once. The work grows with the number of different lengths, not with
    the number of items.
    """
    groups: list[list[Pattern]] = [[] for _ in range(capacity + 1)]  # by the room that is left
    rooms = _Set(capacity)  # those for which there are groups
    for length in range(min(capacity, len(counts) - 1), 0, -1):
        left = counts[length]
        while left:
            if (room := rooms.next(length)) >= 0:
                held, bins = groups[room].pop()
                if not groups[room]:
                    rooms.remove(room)
            else:
                room, held, bins = capacity, (), -(-left // (capacity // length))
            copies = room // length
            full = min(bins, left // copies)
            left -= full * copies
            partial = left if full < bins else 0  # copies in one more bin, the last of this length
            left -= partial
            moved = ((copies, full), (partial, int(partial > 0)), (0, bins - full - (partial > 0)))
            for size, number in moved:
                if number:
                    items = (*held, (length, size)) if size else held
                    groups[room - size * length].append((items, number))
                    rooms.add(room - size * length)
    return [pattern for group in groups for pattern in group]


class _Set:
    """Numbers up to `largest`, as bits in words that are short enough to be quick: one integer of
    131,072 bits would be copied at every step."""

    _WORD = 9

    def __init__(self, largest: int) -> None:
        self._words = [0] * ((largest >> self._WORD) + 1)
        self._used = 0  # bit w is set where word w is not 0

    def add(self, number: int) -> None:
        word = number >> self._WORD
        self._words[word] |= 1 << (number & (1 << self._WORD) - 1)
        self._used |= 1 << word

    def remove(self, number: int) -> None:
        word = number >> self._WORD
        self._words[word] ^= 1 << (number & (1 << self._WORD) - 1)
        if not self._words[word]:
            self._used ^= 1 << word

    def next(self, number: int) -> int:
        """The smallest member from `number` on, or -1."""
        word = number >> self._WORD
        low = number & (1 << self._WORD) - 1
        if word < len(self._words) and (rest := self._words[word] >> low):
            return number + (rest & -rest).bit_length() - 1
        if not (later := self._used >> (word + 1)):
            return -1
        word += (later & -later).bit_length()
        rest = self._words[word]
        return (word << self._WORD) + (rest & -rest).bit_length() - 1
