"""Rows of packed documents for one rank: a pure function of the optimizer step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from threading import Thread
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from launcher.core.errors import ConfigError
from launcher.data.cache import Column, JoinedCache, Per, TokenCache
from launcher.data.pack.mixture import Order

#: Tokens that two documents must begin with alike for these to be computed once.
LEAST_SHARED = 8


@dataclass(slots=True)
class Sharing:
    """How a row is computed where documents of one record begin alike: their common beginning once,
    whose keys and values all of them read."""

    kept: torch.Tensor
    """int64 [computed]: places in the row of the tokens that are computed."""
    where: torch.Tensor
    """int64 [tokens]: of each token of the row its place among these."""
    document_starts: torch.Tensor
    """int32 [documents + 1]: as of the row, among these."""
    longest: int
    """Computed tokens of the document with most of them."""


@dataclass(slots=True)
class Row:
    """Documents laid end to end, without padding and without a batch dimension.

    Only what is learned is listed: `target_index` holds the positions whose *next* token is a
    target. That next token always lies in the same document, so nothing is predicted across a
    boundary.
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
    """int64 [targets]: the token at each position plus one."""
    longest: int
    """Tokens of the longest document; known here, so that no device has to be asked for it."""
    records: list[int]
    """Record ids in the cache."""
    packs: list[int]
    """Indices of the packs in the row, counted over epochs."""
    sizes: list[int]
    """Documents of each record: those of one stay together."""
    record_weights: torch.Tensor | None = None
    """fp32 [records]: what the loss of each is multiplied by; None where all weigh 1."""
    weights: torch.Tensor | None = None
    """The same by target: fp32 [targets]."""
    columns: dict[str, torch.Tensor] = field(default_factory=dict)
    """What the objective keeps beside the tokens: [documents, ...] or [targets, ...]."""
    by_target: frozenset[str] = frozenset()
    """Names of the columns with a value for each target."""
    weight_beside: float = 0.0
    """What the loss is a mean over besides: what is not computed, as nothing is learned of it."""
    is_filler: bool = False
    """Whether it is computed only because other ranks have one more: nothing of it counts."""
    sharing: Sharing | None = None
    """How it can be computed with fewer tokens, where it can."""

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Row:
        """The same row with its tensors on `device`."""
        return self._with(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pinned(self) -> Row:
        """The same row in memory that a GPU copies from while the host goes on."""
        return self._with(torch.Tensor.pin_memory)

    def _with(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Row:
        def changed(value: Any) -> Any:
            return change(value) if isinstance(value, torch.Tensor) else value

        own = {f.name: changed(getattr(self, f.name)) for f in fields(self)}
        own["columns"] = {name: changed(values) for name, values in self.columns.items()}
        if (shared := self.sharing) is not None:
            parts = {f.name: changed(getattr(shared, f.name)) for f in fields(shared)}
            own["sharing"] = Sharing(**parts)
        return replace(self, **own)

    def every(self, count: int, first: int = 0) -> Row:
        """Of each `count` documents the one at place `first`: those of a record, where each has as
        many."""
        last = len(self.document_starts) - 1
        return _documents(self, range(first, last, count), self.records, [1] * len(self.records))

    def document_of_targets(self) -> torch.Tensor:
        """int64 [targets]: which document each one is of."""
        return torch.searchsorted(self.document_starts.long(), self.target_index, right=True) - 1


class RowSource(Protocol):
    """Where the rows of a step come from."""

    def step(self, step: int) -> list[Row]:
        """This rank's rows of optimizer step `step` (from 0), one a micro-batch, on the CPU; the
        same whenever it is asked."""
        ...


class Records(Protocol):
    """What a row is made from: a cache, or an excerpt of one."""

    @property
    def columns(self) -> Mapping[str, Column]: ...

    def record(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]: ...

    def documents(self, i: int) -> list[int]: ...

    def column(self, name: str, i: int) -> NDArray[Any]: ...

    def weight(self, i: int) -> float: ...

    @property
    def is_weighted(self) -> bool: ...


def make_row(
    cache: Records,
    records: Sequence[int] | NDArray[np.int64],
    packs: Sequence[int] = (),
) -> Row:
    """One row of the given records of a `Records`, in that order."""
    chosen = np.asarray(records, np.int64).tolist()
    pieces = [cache.record(i) for i in chosen]
    documents = [cache.documents(i) for i in chosen]
    sizes = list(map(len, documents))
    lengths = np.array([length for own in documents for length in own], np.int64)
    starts = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(lengths, out=starts[1:])
    tokens = np.concatenate([tokens for tokens, _ in pieces]).astype(np.int64)
    flags = np.concatenate([flags for _, flags in pieces])
    flags[starts[:-1]] = 0  # a document's first token has nothing before it to be predicted from
    positions = np.arange(len(tokens)) - np.repeat(starts[:-1], lengths)
    learned = np.flatnonzero(flags)
    weights = record_weights = None
    if cache.is_weighted:
        own = np.array([cache.weight(i) for i in chosen], np.float32)
        record_weights = torch.from_numpy(own)
        tokens_of = [len(tokens) for tokens, _ in pieces]
        weights = torch.from_numpy(np.repeat(own, tokens_of)[learned])
    columns = {
        name: np.concatenate([cache.column(name, i) for i in chosen]) for name in cache.columns
    }
    return Row(
        sharing=_sharing(tokens, starts, sizes, len(learned)),
        input_ids=torch.from_numpy(tokens),
        position_ids=torch.from_numpy(positions),
        document_starts=torch.from_numpy(starts),
        target_index=torch.from_numpy(learned - 1),
        targets=torch.from_numpy(tokens[learned]),
        longest=int(lengths.max()),
        records=chosen,
        packs=list(packs),
        sizes=sizes,
        record_weights=record_weights,
        weights=weights,
        columns={name: torch.from_numpy(values) for name, values in columns.items()},
        by_target=frozenset(n for n, c in cache.columns.items() if c.per is Per.target),
    )


def _sharing(
    tokens: NDArray[np.int64], starts: NDArray[np.int32], sizes: Sequence[int], targets: int
) -> Sharing | None:
    """By what each document has in common with the one before it in its record."""
    if max(sizes) < 2:
        return None
    firsts = set(np.cumsum([0, *sizes]).tolist())
    where, kept, lengths = np.arange(len(tokens)), [], []
    count = before = 0
    for number, (start, end) in enumerate(pairwise(starts.tolist())):
        common = 0
        if number not in firsts:
            most = min(start - before, end - start) - 1  # each has a token of its own
            differ = np.flatnonzero(tokens[before : before + most] != tokens[start : start + most])
            common = int(differ[0]) if len(differ) else most
            common = common if common >= LEAST_SHARED else 0
        own = end - start - common
        where[start : start + common] = where[before : before + common]
        where[start + common : end] = np.arange(count, count + own)
        kept.append(np.arange(start + common, end))
        lengths.append(own)
        count, before = count + own, start
    # A model that gives logits for all tokens is told by their number from one that gives them for
    # targets.
    if count in (targets, len(tokens)):
        return None
    return Sharing(
        torch.from_numpy(np.concatenate(kept)),
        torch.from_numpy(where),
        torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)),
        max(lengths),
    )


def rectangles(row: Row, *, equal: bool = False) -> list[Row]:
    """The records of `row` by length, in rows that hold no more tokens than it even when each
    document is padded to the longest: so a long one does not have many padded to its length.
    `equal`: the documents of a row are of one length, so that none is padded. Raises `ConfigError`
    where that tears a record's documents apart."""
    starts = row.document_starts.tolist()
    firsts = np.cumsum([0, *row.sizes]).tolist()
    lengths = [
        [starts[i + 1] - starts[i] for i in range(first, last)]
        for first, last in zip(firsts, firsts[1:], strict=False)
    ]
    if equal and any(len(set(own)) > 1 for own in lengths):
        raise ConfigError(
            "documents of one record that are of several lengths, which this model cannot compute"
            " in one batch",
            where="model.name",
            hint="it gives other losses where documents are padded: take another model, or"
            " model.attention=eager",
        )
    groups: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: -max(lengths[i])):
        longest = max(lengths[groups[-1][0]]) if groups else 0
        lines = sum(row.sizes[j] for j in groups[-1]) + row.sizes[i] if groups else 0
        fits = groups and lines * longest <= len(row.input_ids)
        if fits and (max(lengths[i]) == longest or not equal):
            groups[-1].append(i)
        else:
            groups.append([i])
    return [_records(row, group) for group in groups]


def _records(row: Row, chosen: list[int]) -> Row:
    """These records of `row`, in this order."""
    firsts = np.cumsum([0, *row.sizes]).tolist()
    documents = [d for i in chosen for d in range(firsts[i], firsts[i + 1])]
    made = _documents(
        row, documents, [row.records[i] for i in chosen], [row.sizes[i] for i in chosen]
    )
    if row.record_weights is not None:
        made.record_weights = row.record_weights[chosen]
    return made


def _documents(row: Row, documents: Sequence[int], records: list[int], sizes: list[int]) -> Row:
    """These documents of `row`, in this order, of `records` that have `sizes` of them; weights by
    record are those of `row`."""
    starts = row.document_starts.tolist()
    spans = [(starts[d], starts[d + 1]) for d in documents]
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
    return replace(
        row,
        input_ids=torch.cat([row.input_ids[start:end] for start, end in spans]),
        position_ids=torch.cat([row.position_ids[start:end] for start, end in spans]),
        document_starts=torch.from_numpy(begins).to(row.document_starts.device),
        target_index=torch.cat(moved),
        targets=row.targets[own],
        longest=max(lengths),
        records=records,
        sizes=sizes,
        sharing=None,
        weights=None if row.weights is None else row.weights[own],
        columns={
            name: values[own if name in row.by_target else list(documents)]
            for name, values in row.columns.items()
        },
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


class Ahead:
    """Rows of another source, each step's made on a thread while the one before is computed; a
    `RowSource`.

    `prepare` is called with each row there. What the source raises, `step` raises for the step
    that it belongs to.
    """

    def __init__(self, rows: RowSource, prepare: Callable[[Row], Row]) -> None:
        self._rows, self._prepare = rows, prepare
        self._next: tuple[int, Future[list[Row]]] | None = None

    def step(self, step: int) -> list[Row]:
        """The rows of optimizer step `step`; those of the next one are begun."""
        if self._next is None or self._next[0] != step:
            if self._next is not None:
                wait([self._next[1]])  # the source is asked by one thread at a time
            self._next = self._begun(step)
        rows = self._next[1].result()
        self._next = self._begun(step + 1)
        return rows

    def _begun(self, step: int) -> tuple[int, Future[list[Row]]]:
        future: Future[list[Row]] = Future()
        # A thread a step: it is gone when its rows are there, and nobody has to end it.
        Thread(target=self._make, args=(step, future), name="rows", daemon=True).start()
        return step, future

    def _make(self, step: int, future: Future[list[Row]]) -> None:
        try:
            future.set_result([self._prepare(row) for row in self._rows.step(step)])
        except BaseException as error:
            future.set_exception(error)
