"""Answers as rows: dealt to ranks and micro-batches so that each computes about as many tokens.
Those of which nothing is learned are not computed.

Where a row computes what the answers of one prompt begin with once, those answers stay together in
as many rows as cost least: whole groups have the fewest tokens, halves or single answers are dealt
more evenly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from launcher.config.derive.plan import Plan
from launcher.data.cache import Column, Per
from launcher.data.pack.loader import LEAST_SHARED, Row, make_row
from launcher.objectives.grpo.objective import ADVANTAGE, COLUMNS, OLD, SAMPLER, TEACHER, Grpo
from launcher.rollouts.answer import ScoredAnswer

#: Column of a row: place and number of each answer.
KEY = "key"
#: Log-probabilities of tokens, where there are some.
_BY_TARGET: Mapping[str, Callable[[ScoredAnswer], list[float] | None]] = {
    SAMPLER: attrgetter("sampler_log_probs"),
    OLD: attrgetter("log_probs"),
    TEACHER: attrgetter("teacher_log_probs"),
}
_COLUMNS = {**COLUMNS, KEY: Column(KEY, Per.document, "int32", 2)}


class Share(NamedTuple):
    """What a row holds."""

    places: list[int]
    is_idle: bool
    """Whether it is computed only because every rank has equally many rows."""


class Load(NamedTuple):
    """What an answer has to compute."""

    group: Any
    """Answers with the same one begin with the same prompt."""
    prompt: int
    """Tokens of it."""
    own: int
    """Tokens of the answer."""


class _Piece(NamedTuple):
    """Answers of a group that stay together, by their places."""

    places: list[int]
    cost: int
    """Tokens that are computed."""


def rows_of_rank(
    answers: Sequence[ScoredAnswer],
    objective: Grpo,
    plan: Plan,
    rank: int,
    *,
    packing: bool,
    shares: bool,
) -> list[Row]:
    """A rank's rows of `answers`, of which there are some. Those that the loss takes no gradient
    from are not computed, unless there are no others, and count in what it is a mean over, in the
    first row of rank 0."""
    counts = objective.options.learns_by_advantage
    computed = [own for own in answers if own.advantage or not counts] or list(answers)
    # Neighbours have most in common.
    computed.sort(key=lambda own: (own.place, own.tokens))
    dealt = deal(loads_of(computed), plan, packing=packing, shares=shares)
    rows = [
        row_of([computed[i] for i in own.places], idle=own.is_idle, shares=shares)
        for own in dealt[rank]
    ]
    keys = {own.key for own in computed}
    beside = [own for own in answers if own.key not in keys]
    if beside and rank == 0:
        rows[0].weight_beside = objective.weight(row_of(beside))
    return rows


def loads_of(answers: Sequence[ScoredAnswer]) -> list[Load]:
    """What each has to compute."""
    return [Load(_group(own), len(own.prompt_tokens), len(own.tokens)) for own in answers]


def deal(
    loads: Sequence[Load], plan: Plan, *, packing: bool, shares: bool = False
) -> list[list[Share]]:
    """Rank -> its rows, by places in `loads`. Every rank has equally many rows, and every row
    something in it: where there are fewer answers than rows, idle ones hold the shortest.

    A row computes no more than a micro-batch: its tokens with `packing`, else its number of
    sequences. `shares`: the prompt of neighbours in a row is computed once.
    """
    assert loads
    most = plan.micro_batch * (plan.max_length if packing else 1)
    dealt = [
        _rows(pieces, most, plan.world_size, packing=packing)
        for pieces in _ways(loads, shares=shares)
        if all(_size(piece, packing) <= most for piece in pieces)
    ]
    rows = min(dealt, key=lambda rows: _slowest(rows, plan.world_size))
    shortest = min(range(len(loads)), key=lambda i: (loads[i].prompt + loads[i].own, i))
    shares_of = [
        Share([i for piece in row for i in piece.places] or [shortest], not row) for row in rows
    ]
    return [shares_of[rank :: plan.world_size] for rank in range(plan.world_size)]


def _ways(loads: Sequence[Load], *, shares: bool) -> Iterator[list[_Piece]]:
    """Ways to cut groups: not at all, into more and more parts, into single answers."""
    groups: dict[Any, list[int]] = {}
    for place in sorted(range(len(loads)), key=lambda i: -loads[i].own):
        groups.setdefault(loads[place].group, []).append(place)
    largest, parts = max(map(len, groups.values())), 1
    while shares and parts < largest:
        yield [
            _piece(own[part::parts], loads)
            for own in groups.values()
            for part in range(min(parts, len(own)))
        ]
        parts *= 2
    yield [_piece([place], loads) for place in range(len(loads))]


def _piece(places: Sequence[int], loads: Sequence[Load]) -> _Piece:
    own, prompt = sum(loads[i].own for i in places), loads[places[0]].prompt
    times = 1 if prompt >= LEAST_SHARED else len(places)
    return _Piece(sorted(places), own + times * prompt)


def _size(piece: _Piece, packing: bool) -> int:
    """What it takes of a micro-batch."""
    return piece.cost if packing else len(piece.places)


def _rows(
    pieces: Sequence[_Piece], most: int, world_size: int, *, packing: bool
) -> list[list[_Piece]]:
    """As few rows as hold all, equally many for each rank, with about as much to compute."""
    sizes = [_size(piece, packing) for piece in pieces]
    count = max(1, -(-sum(sizes) // (most * world_size)))
    while (found := _balanced(pieces, sizes, most, count * world_size)) is None:
        count += 1
    return found


def _balanced(
    pieces: Sequence[_Piece], sizes: Sequence[int], most: int, count: int
) -> list[list[_Piece]] | None:
    """`count` rows, the dearest piece first into the one that has least to compute of those with
    room for it; None if one finds no room."""
    rows: list[list[_Piece]] = [[] for _ in range(count)]
    costs, full = np.zeros(count), np.zeros(count)
    for i in sorted(range(len(pieces)), key=lambda i: (-pieces[i].cost, i)):
        row = int(np.where(full + sizes[i] <= most, costs, np.inf).argmin())
        if full[row] + sizes[i] > most:
            return None
        rows[row].append(pieces[i])
        costs[row] += pieces[i].cost
        full[row] += sizes[i]
    return rows


def _slowest(rows: Sequence[Sequence[_Piece]], world_size: int) -> int:
    """Tokens that are computed while all wait for the rank that has most, row by row."""
    costs = [sum(piece.cost for piece in row) for row in rows]
    return sum(max(costs[i : i + world_size]) for i in range(0, len(costs), world_size))


class _Documents:
    """Answers behind their prompts, in records of one or several, as `make_row` reads them."""

    def __init__(self, records: Sequence[Sequence[ScoredAnswer]], *, idle: bool) -> None:
        self._records, self._idle = records, idle
        answers = [own for record in records for own in record]
        lacking = {name for name, of in _BY_TARGET.items() if of(answers[0]) is None}
        self.columns: Mapping[str, Column] = {
            name: column for name, column in _COLUMNS.items() if name not in lacking
        }
        self.is_weighted = idle or any(answer.weight != 1 for answer in answers)

    def record(self, i: int) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
        tokens: list[int] = []
        flags = []
        for own in self._records[i]:
            tokens += [*own.prompt_tokens, *own.tokens]
            marks = np.zeros(len(own.prompt_tokens) + len(own.tokens), np.uint8)
            for begin, end in own.drawn:
                marks[len(own.prompt_tokens) + begin : len(own.prompt_tokens) + end] = 1
            flags.append(marks)
        return np.array(tokens, np.int32), np.concatenate(flags)

    def documents(self, i: int) -> list[int]:
        return [len(own.prompt_tokens) + len(own.tokens) for own in self._records[i]]

    def column(self, name: str, i: int) -> NDArray[Any]:
        answers = self._records[i]
        if name == KEY:
            return np.array([own.key for own in answers], np.int32)
        if name == ADVANTAGE:
            return np.array([own.advantage for own in answers], np.float32)
        values: Any = [_BY_TARGET[name](own) for own in answers]
        return np.concatenate(values).astype(np.float32)

    def weight(self, i: int) -> float:
        return 0.0 if self._idle else self._records[i][0].weight


def row_of(answers: Sequence[ScoredAnswer], *, idle: bool = False, shares: bool = False) -> Row:
    """A row of answers; an `idle` one is computed and counts nothing. With `shares` neighbours that
    have one prompt are one record, whose beginning can be computed once."""
    records = [[own] for own in answers]
    if shares:
        records = [list(group) for _, group in groupby(answers, _group)]
    row = make_row(_Documents(records, idle=idle), list(range(len(records))))
    return replace(row, records=[own[0].record for own in records])


def _group(own: ScoredAnswer) -> tuple[Any, ...]:
    """What answers have in common that may be one record."""
    return own.place, own.record, own.weight, tuple(own.prompt_tokens)
