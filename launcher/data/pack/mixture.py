"""Packs of several sources in given shares, each source packed and shuffled by itself.

One epoch of a mixture holds a fixed number of packs of each source. Which source pack `i` is of,
and which of that source's packs it is, follows from `i` alone in a few integer operations: one
source after the other takes its exact share of what those before it have left. Blocks of
neighbouring packs are then shuffled, or ranks would get one source each where the shares repeat.
Nothing here depends on ranks or on what was trained before, so a resumed run goes on with the same
packs.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from launcher.config.schema import Config
from launcher.core.files import write_atomic
from launcher.data.cache import INDEX, Counts, Index, JoinedCache, TokenCache, read_index
from launcher.data.chat.turn_ends import joined
from launcher.data.pack.packing import PackedOrder, Sizes, permute, round_keys
from launcher.fingerprint import Part

#: Packs that are shuffled among each other.
BLOCK = 256
#: Group of `round_keys` for the order in block b is this minus b: lengths and 0 are taken.
_GROUP = -1


class Order(Protocol):
    """An endless sequence of packs."""

    num_packs: int
    """Packs of one epoch."""

    def pack(self, index: int) -> NDArray[np.int64]:
        """Record ids of pack `index`."""
        ...


class MixedOrder:
    """Packs of `orders` in the proportion of `counts`, which are the packs of each in one epoch.

    `starts` is the number of each source's first record in the joined cache.
    """

    def __init__(
        self,
        orders: Sequence[PackedOrder],
        counts: Sequence[int],
        starts: Sequence[int],
        seed: int,
        shuffle: bool = True,
    ) -> None:
        if not orders or len(orders) != len(counts) or min(counts) < 0 or not sum(counts):
            raise ValueError(f"{len(orders)} sources cannot have {list(counts)} packs")
        self.orders = list(orders)
        self.counts = list(counts)
        self.num_packs = sum(counts)
        self._starts = list(starts)
        self._seed = seed
        self._shuffle = shuffle

    def find(self, index: int) -> tuple[int, int]:
        """Source of pack `index`, and which of the source's packs it is."""
        epoch, place = divmod(index, self.num_packs)
        if self._shuffle:
            block = place // BLOCK
            begin = block * BLOCK
            size = min(BLOCK, self.num_packs - begin)
            keys = round_keys(self._seed, epoch, _GROUP - block)
            place = begin + permute(place - begin, size, keys)
        left = self.num_packs
        for source, count in enumerate(self.counts):
            taken = place * count // left
            if (place + 1) * count // left > taken:
                return source, epoch * count + taken
            place, left = place - taken, left - count
        raise AssertionError("the last source takes all that is left")

    def pack(self, index: int) -> NDArray[np.int64]:
        """Record ids in the joined cache of pack `index`; any index from 0 on, without end."""
        source, own = self.find(index)
        return self.orders[source].pack(own) + self._starts[source]


def open_data(folder: str | Path, config: Config) -> tuple[TokenCache | JoinedCache, Order]:
    """A prepared split and the order in which it is trained on.

    Raises `StorageError` for a damaged cache.
    """
    cache, data = TokenCache.open(folder), config.data
    packing = data.packing and not config.objective.samples  # prompts are taken one by one
    return cache, make_order(cache, data.max_length, config.seed, data.shuffle, packing)


def records_of(order: Order, packs: range, most: int) -> list[int]:
    """The records in some packs of `order`, ascending, each once; `most` are all there are."""
    found: set[int] = set()
    for pack in packs:
        found.update(order.pack(pack).tolist())
        if len(found) == most:
            break
    return sorted(found)


def make_order(
    cache: TokenCache | JoinedCache,
    max_length: int,
    seed: int,
    shuffle: bool = True,
    packing: bool = True,
) -> PackedOrder | MixedOrder:
    """The order of a cache's packs, by the shares in its index if it is a mixture."""
    if isinstance(cache, TokenCache):
        return PackedOrder(sizes_of(cache), max_length, seed, shuffle, packing)
    orders = [
        # Sources of equal lengths must not be shuffled alike.
        PackedOrder(sizes_of(part), max_length, _mixed(seed, number), shuffle, packing)
        for number, part in enumerate(cache.parts)
    ]
    counts = pack_counts(
        cache.index.mixture,
        [order.num_packs for order in orders],
        [part.index.tokens for part in cache.parts],
        cache.index.temperature,
    )
    return MixedOrder(orders, counts, cache.starts, seed, shuffle)


def sizes_of(cache: TokenCache) -> Sizes:
    """Lengths of a cache's records, as they were worked out when it was made."""
    return Sizes(cache.histogram, lambda: cache.offsets, lambda: cache.order)


def pack_counts(
    mixture: Sequence[dict[str, Any]],
    packs: Sequence[int],
    tokens: Sequence[int],
    temperature: float | None = None,
) -> list[int]:
    """Packs of each source in one epoch of the mixture.

    By epochs: so many times its packs. By weight or temperature: its share of all packs there are;
    a source without a weight has weight 1. Otherwise each source once. Every source has a pack.
    """
    if any(source.get("epochs") is not None for source in mixture):
        times = [1.0 if (e := source.get("epochs")) is None else float(e) for source in mixture]
        return [max(1, round(n * time)) for n, time in zip(packs, times, strict=True)]
    if temperature is not None:
        largest = max(tokens)  # keeps the powers within range for any temperature
        shares = [(number / largest) ** (1 / temperature) for number in tokens]
    elif any(source.get("weight") is not None for source in mixture):
        shares = [1.0 if (w := source.get("weight")) is None else float(w) for source in mixture]
    else:
        return list(packs)
    return _apportion(shares, sum(packs))


def _apportion(shares: Sequence[float], total: int) -> list[int]:
    """Whole numbers in proportion to `shares` with sum `total`, none 0 (largest remainders)."""
    whole = math.fsum(shares)
    exact = [total * share / whole for share in shares]
    counts = [max(1, math.floor(value)) for value in exact]
    # Largest remainder first; of equal ones the first source.
    places = sorted(range(len(exact)), key=lambda i: (math.floor(exact[i]) - exact[i], i))
    for i in places[: max(0, total - sum(counts))]:
        counts[i] += 1
    while sum(counts) > max(total, len(counts)):  # those that got one though their share is less
        counts[counts.index(max(counts))] -= 1
    return counts


def _mixed(seed: int, number: int) -> int:
    return seed + (number << 40)


def join(config: Config, split: str, parts: Sequence[Part], folder: Path) -> None:
    """Write the folder of a mixture, which names those of its sources; they must be prepared."""
    indices = [read_index(folder.with_name(part.keys[split])) for part in parts]
    shares = split == "train"
    index = Index(
        key=folder.name,
        files=[],
        format=", ".join(sorted({index.format for index in indices})),
        tokenizer=indices[0].tokenizer,
        max_length=config.data.max_length,
        records=sum(index.records for index in indices),
        tokens=sum(index.tokens for index in indices),
        target_tokens=sum(index.target_tokens for index in indices),
        longest=max(index.longest for index in indices),
        counts=functools.reduce(Counts.__add__, (index.counts for index in indices)),
        mixture=[
            {
                "folder": part.keys[split],
                "name": part.item.name,
                "weight": part.item.weight if shares else None,
                "epochs": part.item.epochs if shares else None,
            }
            for part in parts
        ],
        temperature=config.data.temperature if shares else None,
        turn_ends=joined(index.turn_ends for index in indices),
    )
    text = json.dumps(asdict(index), indent=1)
    path = folder / INDEX
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        write_atomic(path, text)
