"""Rows of packed documents for one rank: a pure function of the optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray

from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.mixture import Order


@dataclass(slots=True)
class Row:
    """Documents laid end to end, without padding and without a batch dimension.

    Only what is learned is listed: `target_index` holds the positions whose *next* token is a
    target. That next token always lies in the same document, so nothing is predicted across a
    boundary. For a classifier it holds the last position of each document, and the targets are the
    classes.
    """

    input_ids: torch.Tensor
    """int64 [tokens]"""
    position_ids: torch.Tensor
    """int64 [tokens]; starts at 0 in every document."""
    document_starts: torch.Tensor
    """int32 [documents + 1]: cumulative lengths, as variable-length attention takes them."""
    target_index: torch.Tensor
    """int64 [targets]: positions to predict from."""
    targets: torch.Tensor
    """int64 [targets]: the token at each position plus one, or the document's class (-1: none);
    fp32 [targets, classes] of 0 and 1 where several classes may apply."""
    longest: int
    """Tokens of the longest document; known here, so that no device has to be asked for it."""
    records: list[int]
    """Record ids in the cache, one a document."""
    packs: list[int]
    """Indices of the packs in the row, counted over epochs."""
    weights: torch.Tensor | None = None
    """fp32 [targets]: what each one's loss is multiplied by; None where all records weigh 1."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Row:
        """The same row with its tensors on `device`."""
        return replace(
            self,
            **{
                field.name: getattr(self, field.name).to(device, non_blocking=non_blocking)
                for field in fields(self)
                if isinstance(getattr(self, field.name), torch.Tensor)
            },
        )


def make_row(
    cache: TokenCache | JoinedCache,
    records: Sequence[int] | NDArray[np.int64],
    packs: Sequence[int] = (),
) -> Row:
    """One row of the given records, in that order."""
    chosen = np.asarray(records, np.int64).tolist()
    pieces = [cache.record(i) for i in chosen]
    lengths = np.array([len(tokens) for tokens, _ in pieces], np.int64)
    starts = np.zeros(len(pieces) + 1, np.int32)
    np.cumsum(lengths, out=starts[1:])
    tokens = np.concatenate([tokens for tokens, _ in pieces]).astype(np.int64)
    flags = np.concatenate([flags for _, flags in pieces])
    flags[starts[:-1]] = 0  # a document's first token has nothing before it to be predicted from
    positions = np.arange(len(tokens)) - np.repeat(starts[:-1], lengths)
    learned = np.flatnonzero(flags)
    index, targets = learned - 1, tokens[learned]
    classes = [cache.target(i) for i in chosen]
    if classes[0] is not None:
        index, targets = starts[1:].astype(np.int64) - 1, np.stack(classes)
    weights = None
    if cache.is_weighted:
        own = np.array([cache.weight(i) for i in chosen], np.float32)
        weights = torch.from_numpy(np.repeat(own, lengths)[index])
    return Row(
        input_ids=torch.from_numpy(tokens),
        position_ids=torch.from_numpy(positions),
        document_starts=torch.from_numpy(starts),
        target_index=torch.from_numpy(index),
        targets=torch.from_numpy(targets),
        longest=int(lengths.max()),
        records=chosen,
        packs=list(packs),
        weights=weights,
    )


def rectangles(row: Row, *, equal: bool = False) -> list[Row]:
    """The documents of `row` by length, in rows that hold no more tokens than it even when each
    document is padded to the longest: so a long one does not have many padded to its length.
    `equal`: those of a row are of one length, so that none is padded."""
    lengths = row.document_starts.diff().tolist()
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[groups[-1][0]] if groups else 0
        fits = groups and (len(groups[-1]) + 1) * longest <= len(row.input_ids)
        if fits and (lengths[i] == longest or not equal):
            groups[-1].append(i)
        else:
            groups.append([i])
    return [_documents(row, group) for group in groups]


def without_targets(row: Row) -> Row:
    """`row`, of which nothing is learned."""
    none = row.target_index.new_empty(0)
    weights = None if row.weights is None else row.weights[none]
    return replace(row, target_index=none, targets=row.targets[none], weights=weights)


def _documents(row: Row, chosen: list[int]) -> Row:
    """These documents of `row`, in this order."""
    starts = row.document_starts.tolist()
    spans = [(starts[i], starts[i + 1]) for i in chosen]
    lengths = [end - start for start, end in spans]
    begins = np.cumsum([0, *lengths], dtype=np.int32)
    learned = [
        ((row.target_index >= start) & (row.target_index < end)).nonzero().flatten()
        for start, end in spans
    ]
    own = torch.cat(learned)
    moved = [
        row.target_index[index] - start + int(begin)
        for index, (start, _), begin in zip(learned, spans, begins[:-1], strict=True)
    ]
    return Row(
        input_ids=torch.cat([row.input_ids[start:end] for start, end in spans]),
        position_ids=torch.cat([row.position_ids[start:end] for start, end in spans]),
        document_starts=torch.from_numpy(begins),
        target_index=torch.cat(moved),
        targets=row.targets[own],
        longest=max(lengths),
        records=[row.records[i] for i in chosen],
        packs=row.packs,
        weights=None if row.weights is None else row.weights[own],
    )


class Loader:
    """Cuts the global batch of a step into this rank's micro-batches, purely by the step's number.

    Step `s` trains on packs [s * G, (s + 1) * G), G = global_sequences, whatever the number of
    ranks. Rank r takes every world_size-th of them, and each micro-batch is the next `micro_batch`
    of those in one row.
    """

    def __init__(
        self,
        cache: TokenCache | JoinedCache,
        order: Order,
        *,
        global_sequences: int,
        micro_batch: int,
        accumulation: int,
        rank: int,
        world_size: int,
    ) -> None:
        if (
            global_sequences != micro_batch * accumulation * world_size
            or not 0 <= rank < world_size
        ):
            raise ValueError(
                f"a global batch of {global_sequences} is not {world_size} ranks x {accumulation} "
                f"micro-batches x {micro_batch} sequences, or rank {rank} is not one of the ranks"
            )
        self._cache = cache
        self._order = order
        self._global_sequences = global_sequences
        self._micro_batch = micro_batch
        self._rank = rank
        self._world_size = world_size

    def step(self, step: int) -> list[Row]:
        """This rank's rows of optimizer step `step` (from 0), one a micro-batch."""
        first = step * self._global_sequences
        mine = range(first + self._rank, first + self._global_sequences, self._world_size)
        return [
            self._row(mine[begin : begin + self._micro_batch])
            for begin in range(0, len(mine), self._micro_batch)
        ]

    def _row(self, packs: range) -> Row:
        records = np.concatenate([self._order.pack(pack) for pack in packs])
        return make_row(self._cache, records, packs)
