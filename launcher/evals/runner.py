"""Runs the passes that give per-record results, spread over ranks with exact counts.

Every rank gets the same list of records, works on its share and gathers. No record is scored twice
and none is padding: where ranks must stay in step (ZeRO-3), results of filler batches are dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch.distributed as dist
from torch import Tensor

from launcher.evals.records import LossRecord, ScoredRecord

Item = TypeVar("Item")
RowT = TypeVar("RowT", bound="ScoredRow")
Scored = TypeVar("Scored", bound=ScoredRecord)


class ScoredRow(Protocol):
    """What a pass reads of a row of concatenated documents."""

    document_starts: Tensor
    target_index: Tensor
    sizes: list[int]


class EvaluationStopped(Exception):
    """`should_stop` said so between two batches; nothing of the pass is kept."""


@dataclass(frozen=True, slots=True)
class PlannedBatch:
    """Positions of one batch in the list that was planned.

    `counted` is False for filler, whose results are dropped. No positions at all: nothing to
    compute this round, but the round takes place (every rank polls `should_stop` equally often).
    """

    positions: list[int]
    counted: bool = True


def shard(ids: Sequence[Item], rank: int, world_size: int) -> Sequence[Item]:
    """This rank's share: every `world_size`-th item. Shares are disjoint and cover all items."""
    return ids[rank::world_size]


def plan_batches(
    lengths: Sequence[int],
    *,
    batch_tokens: int,
    rank: int = 0,
    world_size: int = 1,
    lockstep: bool = False,
    new_tokens: int | None = None,
    equal: bool = False,
) -> list[PlannedBatch]:
    """This rank's batches over records of `lengths` tokens; equally many batches on every rank.

    Records are dealt in order of length, so that ranks get equal work, and cut into batches of at
    most `batch_tokens` tokens (one record at least). With `new_tokens` a batch is a padded
    rectangle that grows by so many tokens, otherwise records lie end to end. `equal`: the records
    of a batch are of one length. `lockstep`: a rank that has fewer batches repeats the shortest
    record as filler, for engines whose forward is a collective.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    shares = [
        _cut(shard(order, peer, world_size), lengths, batch_tokens, new_tokens, equal)
        for peer in range(world_size)
    ]
    mine = shares[rank]
    filler = PlannedBatch(order[-1:] if lockstep else [], counted=False)
    return mine + [filler] * (max(map(len, shares)) - len(mine))


def _cut(
    order: Sequence[int],
    lengths: Sequence[int],
    batch_tokens: int,
    new_tokens: int | None,
    equal: bool,
) -> list[PlannedBatch]:
    """Cut positions, longest first, into batches."""
    batches: list[PlannedBatch] = []
    used = width = 0
    for position in order:
        cost = lengths[position] if new_tokens is None else width
        fits = not equal or not batches or lengths[position] == lengths[batches[-1].positions[0]]
        if batches and fits and used + cost <= batch_tokens:
            batches[-1].positions.append(position)
        else:
            batches.append(PlannedBatch([position]))
            used, width = 0, lengths[position] + (new_tokens or 0)
            cost = width
        used += cost
    return batches


def rows_of(
    batches: Iterable[PlannedBatch], ids: Sequence[int], build: Callable[[list[int]], RowT]
) -> Iterator[tuple[RowT | None, list[int]]]:
    """The input of `loss_records`: one row and its record ids a batch, built one at a time.

    Position p of a batch is record `ids[p]`; `build` turns record ids into a row.
    """
    for batch in batches:
        records = [ids[position] for position in batch.positions]
        yield (build(records) if records else None), (records if batch.counted else [])


def loss_records(
    rows: Iterable[tuple[RowT | None, Sequence[int]]],
    score: Callable[[RowT], tuple[Tensor, Tensor]],
    should_stop: Callable[[], bool] | None = None,
) -> list[LossRecord]:
    """Score rows and split the per-target values among their records.

    `rows` yields a row and the id of each of its records; without ids the row is filler:
    scored and dropped. `score(row)` gives loss in nats (float32 [targets]) and whether the target
    is the first choice (bool [targets]). `should_stop` is asked before each row; raises
    `EvaluationStopped`.
    """
    results: list[LossRecord] = []
    for row, ids in computed(rows, should_stop):
        losses, correct = score(row)
        if not ids:
            continue
        assert len(row.sizes) == len(ids), f"{len(ids)} ids for {len(row.sizes)} records"
        # Where records begin: those of their first documents.
        starts = row.document_starts.cpu().numpy()[np.cumsum([0, *row.sizes])]
        record = np.searchsorted(starts, row.target_index.cpu().numpy(), side="right") - 1
        sums, hits = (
            np.bincount(record, weights=values, minlength=len(ids))
            for values in (losses.detach().double().cpu().numpy(), correct.double().cpu().numpy())
        )
        counts = np.bincount(record, minlength=len(ids))
        results.extend(
            LossRecord(int(i), float(total), int(targets), int(right))
            for i, total, targets, right in zip(ids, sums, counts, hits, strict=True)
        )
    return results


def gather(
    records: Sequence[Scored],
    *,
    expected: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> list[Scored]:
    """All ranks' records, sorted by id, on every rank; a collective when there is a process group.

    `expected` is the number of records of all ranks together. Pass a gloo `group` where one exists:
    objects then need not travel through device memory.
    """
    merged = list(records)
    if dist.is_available() and dist.is_initialized():
        parts: list[list[Scored]] = [[] for _ in range(dist.get_world_size(group))]
        dist.all_gather_object(parts, merged, group=group)
        merged = [record for part in parts for record in part]
    merged.sort(key=lambda record: record.id)
    num_distinct = len({record.id for record in merged})
    assert num_distinct == len(merged), "a record was scored on two ranks"
    assert expected in (None, len(merged)), f"{len(merged)} of {expected} records were scored"
    return merged


def all_agree(mine: bool) -> bool:
    """Whether something is so on all ranks; a collective when there is a process group."""
    if not (dist.is_available() and dist.is_initialized()):
        return mine
    found = [False] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    return all(found)


def computed(
    rows: Iterable[tuple[RowT | None, Sequence[int]]],
    should_stop: Callable[[], bool] | None = None,
) -> Iterator[tuple[RowT, Sequence[int]]]:
    """The rows of a pass that are to be computed, each with its ids: filler, which has none, too,
    but no round without a row. `should_stop` is asked in each round; raises
    `EvaluationStopped`."""
    for row, ids in rows:
        poll(should_stop)
        if row is not None:
            yield row, ids


def poll(should_stop: Callable[[], bool] | None) -> None:
    """Raise `EvaluationStopped` if `should_stop` says so."""
    if should_stop is not None and should_stop():
        raise EvaluationStopped
