"""Answers as rows: dealt to ranks and micro-batches so that each has about as many tokens."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from launcher.config.derive.plan import Plan
from launcher.data.cache import Column
from launcher.data.pack.loader import Row, make_row
from launcher.objectives.grpo.objective import ADVANTAGE, COLUMNS, OLD, SAMPLER
from launcher.rollouts.answer import ScoredAnswer


class Share(NamedTuple):
    """What a row holds."""

    places: list[int]
    is_idle: bool
    """Whether it is computed only because every rank has equally many rows."""


def deal(lengths: Sequence[int], plan: Plan, *, packing: bool) -> list[list[Share]]:
    """Rank -> its rows, by places in `lengths`, those of the answers with their prompts. Every rank
    has equally many rows, and every row something in it: where there are fewer answers than rows,
    idle ones hold the shortest.

    A row holds no more than a micro-batch: its tokens with `packing`, else its number of sequences.
    """
    assert lengths
    world, per_row = plan.world_size, plan.micro_batch
    capacity = per_row * plan.max_length
    need = sum(lengths) / capacity if packing else len(lengths) / per_row
    count = max(1, int(np.ceil(need / world)))
    while True:
        rows = _balanced(lengths, world * count, None if packing else per_row)
        fits = all(sum(lengths[i] for i in row) <= capacity for row in rows) or not packing
        if fits or world * count >= len(lengths):
            break
        count += 1
    shortest = min(range(len(lengths)), key=lambda i: (lengths[i], i))
    shares = [Share(row or [shortest], not row) for row in rows]
    return [shares[rank::world] for rank in range(world)]


def _balanced(lengths: Sequence[int], count: int, most: int | None) -> list[list[int]]:
    """`count` rows, the longest first into the one that has fewest tokens, `most` in each."""
    heap = [(0, row) for row in range(count)]
    rows: list[list[int]] = [[] for _ in range(count)]
    for place in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        total, row = heapq.heappop(heap)
        rows[row].append(place)
        if most is None or len(rows[row]) < most:
            heapq.heappush(heap, (total + lengths[place], row))
    return rows


class _Documents:
    """Answers behind their prompts, as `make_row` reads records."""

    def __init__(self, answers: Sequence[ScoredAnswer], *, idle: bool) -> None:
        self._answers, self._idle = answers, idle
        has_old = answers[0].log_probs is not None
        self.columns: Mapping[str, Column] = {
            name: column for name, column in COLUMNS.items() if has_old or name != OLD
        }
        self.is_weighted = idle or any(answer.weight != 1 for answer in answers)

    def record(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        own = self._answers[i]
        tokens = np.array([*own.prompt_tokens, *own.tokens], np.int32)
        flags = np.zeros(len(tokens), np.uint8)
        flags[len(own.prompt_tokens) :] = 1
        return tokens, flags

    def documents(self, i: int) -> list[int]:
        own = self._answers[i]
        return [len(own.prompt_tokens) + len(own.tokens)]

    def column(self, name: str, i: int) -> NDArray[Any]:
        own = self._answers[i]
        values: Any = own.log_probs
        if name == ADVANTAGE:
            values = [own.advantage]
        elif name == SAMPLER:
            values = own.sampler_log_probs
        return np.array(values, np.float32)

    def weight(self, i: int) -> float:
        return 0.0 if self._idle else self._answers[i].weight


def row_of(answers: Sequence[ScoredAnswer], *, idle: bool = False) -> Row:
    """A row of answers; an `idle` one is computed and counts nothing."""
    documents = _Documents(answers, idle=idle)
    made = make_row(documents, list(range(len(answers))))
    return replace(made, records=[answer.record for answer in answers])
