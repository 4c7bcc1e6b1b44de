"""Sequence parallelism: the ranks of a group share each row, and each computes a stretch of it.

Most of a model works token by token. Attention does not: there the ranks exchange, and each has
some of the heads over the whole row, as DeepSpeed-Ulysses does (Jacobs et al. 2023,
arXiv:2309.14509). Queries, keys and values are exchanged before attention, and what comes of it
after, so that attention itself stays what it is, documents, windows and all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from launcher.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SequenceGroup:
    """The ranks that share a row."""

    size: int
    index: int
    """This rank's place among them, and that of its stretch in the row."""
    group: dist.ProcessGroup

    @classmethod
    def make(cls, size: int) -> SequenceGroup:
        """This rank's group, where each `size` ranks that follow one another are one; all ranks
        call this together."""
        rank, found = dist.get_rank(), None
        for first in range(0, dist.get_world_size(), size):
            group = dist.new_group(list(range(first, first + size)))
            found = group if first <= rank < first + size else found
        assert found is not None
        return cls(size, rank % size, found)

    def sum(self, mine: Tensor) -> Tensor:
        """The sum over the group of a tensor that each rank has a part of, with gradients: all
        ranks make the same of it, so that each takes its own part of the gradient."""
        total: Tensor = _Sum.apply(mine, self)
        return total

    def join(self, mine: Tensor, counts: Sequence[int]) -> Tensor:
        """What the ranks have of a tensor, [counts[rank], ...] each, one behind the other: with
        gradients, of which each takes its own part as in `sum`."""
        whole: Tensor = _Join.apply(mine, tuple(counts), self)
        return whole


@dataclass(frozen=True, slots=True)
class Stretches:
    """How a row is cut among the ranks of a group."""

    group: SequenceGroup
    lengths: tuple[int, ...]
    """Tokens of each rank."""

    def by_heads(self, x: Tensor, heads: int) -> Tensor:
        """[1, H, n, D] with this rank's tokens -> [1, `heads` / ranks, N, D] with all tokens and
        this rank's share of the heads, each of which is repeated until there are `heads`."""
        size, width = self.group.size, x.shape[-1]
        if x.shape[1] != heads:
            x = x.repeat_interleave(heads // x.shape[1], dim=1)
        own, each = x.shape[2] * width, heads // size
        received = [each * length * width for length in self.lengths]
        flat: Tensor = _Exchange.apply(
            x.reshape(-1), [each * own] * size, received, self.group.group
        )
        parts = zip(flat.split(received), self.lengths, strict=True)
        return torch.cat([part.view(1, each, n, width) for part, n in parts], dim=2)

    def by_tokens(self, x: Tensor) -> Tensor:
        """[1, N, H / ranks, D] with all tokens -> [1, n, H, D] with this rank's."""
        size, mine = self.group.size, self.lengths[self.group.index]
        heads, width = x.shape[2:]
        sent = [length * heads * width for length in self.lengths]
        received = [mine * heads * width] * size
        flat: Tensor = _Exchange.apply(x.reshape(-1), sent, received, self.group.group)
        whole = flat.view(size, mine, heads, width).transpose(0, 1)
        return whole.reshape(1, mine, size * heads, width)

    def key_heads(self, queries: int, keys: int) -> int:
        """How many heads of keys there must be for each rank to have those that its queries read:
        `keys`, or so many that each is there for several ranks. `ConfigError` where `queries` heads
        cannot be shared."""
        size = self.group.size
        if queries % size:
            raise indivisible(queries, size)
        least = math.lcm(keys, size)
        return least if queries % least == 0 else queries


def indivisible(heads: int, size: int) -> ConfigError:
    """Why so many heads cannot be shared by the ranks of a group."""
    sizes = [n for n in range(1, heads + 1) if heads % n == 0]
    return ConfigError(
        f"{size} ranks a row, which cannot share the {heads} attention heads of the model",
        where="engine.sequence_parallel",
        hint=f"it divides the heads: engine.sequence_parallel={max(n for n in sizes if n <= size)}",
    )


@dataclass(frozen=True, slots=True)
class RowStretch:
    """The stretch of a row that a rank computes; `launcher.model.head.RowTensors`, but that
    `document_starts` and `longest` are those of the whole row, of which attention is."""

    input_ids: Tensor
    position_ids: Tensor
    document_starts: Tensor
    target_index: Tensor
    targets: Tensor
    weights: Tensor | None
    longest: int
    part: slice
    """Which of the row's targets it has."""
    counts: tuple[int, ...]
    """Targets of each rank."""
    stretches: Stretches
    sharing: None = None


def cut(row: Any, group: SequenceGroup) -> RowStretch:
    """This rank's stretch of `row`, a `launcher.model.head.RowTensors` that all ranks of the group
    have.

    Stretches are as equal as can be. A row with fewer tokens than ranks gets a document more, of
    which nothing is learned.
    """
    ids, positions, starts = row.input_ids, row.position_ids, row.document_starts
    if (missing := group.size - len(ids)) > 0:
        ids = torch.cat([ids, ids[:1].expand(missing)])
        positions = torch.cat([positions, torch.arange(missing, device=positions.device)])
        starts = torch.cat([starts, starts[-1:] + missing])
    count = len(ids)
    bounds = [count * i // group.size for i in range(group.size + 1)]
    edges = torch.tensor(bounds, device=row.target_index.device)
    firsts = torch.searchsorted(row.target_index, edges).tolist()
    begin, end = bounds[group.index : group.index + 2]
    part = slice(*firsts[group.index : group.index + 2])
    lengths = tuple(b - a for a, b in zip(bounds, bounds[1:], strict=False))
    return RowStretch(
        input_ids=ids[begin:end],
        position_ids=positions[begin:end],
        document_starts=starts,
        target_index=row.target_index[part] - begin,
        targets=row.targets[part],
        weights=None if row.weights is None else row.weights[part],
        longest=max(row.longest, missing),
        part=part,
        counts=tuple(b - a for a, b in zip(firsts, firsts[1:], strict=False)),
        stretches=Stretches(group, lengths),
    )


class _Exchange(torch.autograd.Function):
    """All-to-all of a flat tensor, of which the ranks of a group get parts of these sizes."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
    ) -> Tensor:
        ctx.sizes, ctx.group = (received, sent), group
        return _exchanged(x, sent, received, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        sent, received = ctx.sizes
        return _exchanged(grads[0], sent, received, ctx.group), None, None, None


def _exchanged(x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    found = x.new_empty(sum(received))
    dist.all_to_all_single(found, x.contiguous(), received, sent, group=group)
    return found


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor, group: SequenceGroup) -> Tensor:
        total = mine.clone()
        dist.all_reduce(total, group=group.group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0], None


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mine: Tensor, counts: tuple[int, ...], group: SequenceGroup) -> Tensor:
        first = sum(counts[: group.index])
        ctx.part = slice(first, first + counts[group.index])
        one = math.prod(mine.shape[1:])
        flat = mine.reshape(-1)
        sent, received = [len(flat)] * group.size, [count * one for count in counts]
        whole = _exchanged(flat.repeat(group.size), sent, received, group.group)
        return whole.view(-1, *mine.shape[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return grads[0][ctx.part], None, None
