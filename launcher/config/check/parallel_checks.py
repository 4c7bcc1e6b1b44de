"""The rules of what divides the ranks into groups: shared sequences, a second partition."""

from __future__ import annotations

import math
from collections.abc import Iterator

from launcher.config.derive import memory
from launcher.config.schema import Attention, Config, MicroBatch
from launcher.core.errors import Problem

#: Attention in which the ranks that share a sequence exchange heads.
_SHARING = (Attention.auto, Attention.document, Attention.varlen)
_SEQUENCE = "engine.sequence_parallel"


def check(config: Config, world_size: int | None) -> Iterator[Problem]:
    """Problems for `world_size` ranks (None: number of ranks not known)."""
    yield from _secondary(config, world_size)
    if config.engine.sequence_parallel > 1:
        yield from _sequence(config, world_size)


def groups(config: Config, world_size: int) -> int:
    """How many sequences the ranks compute at once; all ranks, where they are no whole groups."""
    size = config.engine.sequence_parallel
    return world_size // size if size > 0 and world_size % size == 0 else world_size


def _secondary(config: Config, world_size: int | None) -> Iterator[Problem]:
    size, stage = config.engine.secondary_partition, config.engine.zero
    where = "engine.secondary_partition"
    if size is not None and stage != 3:
        yield Problem(
            where, f"{size} with engine.zero={stage}", "only ZeRO-3 has one: engine=zero3"
        )
    elif size is not None and world_size is not None and world_size % size:
        hint = "leave it out, or take the ranks of a node, which divide all of them"
        yield Problem(where, f"groups of {size} of {world_size} ranks", hint)


def _sequence(config: Config, world_size: int | None) -> Iterator[Problem]:
    size, objective, model = config.engine.sequence_parallel, config.objective, config.model
    without = f"{_SEQUENCE}=1"
    heads = _heads(config)
    common = math.gcd(heads or size, world_size or size)
    near = max(n for n in range(1, size + 1) if common % n == 0)
    if world_size is not None and world_size % size:
        found = f"{size} ranks a sequence, which do not divide {world_size} ranks"
        yield Problem(_SEQUENCE, found, f"{_SEQUENCE}={near}, or other ranks")
    if not objective.shares_rows:
        found = f"{size} with objective={objective.name}, whose sequences no ranks can share"
        yield Problem(_SEQUENCE, found, without)
    if model.attention not in _SHARING:
        hint = f"model.attention=auto, or {without}"
        yield Problem("model.attention", f"{model.attention.name} with {_SEQUENCE}={size}", hint)
    if model.compile:
        hint = f"model.compile=false, or {without}"
        yield Problem("model.compile", f"true with {_SEQUENCE}={size}", hint)
    if config.batch.micro is MicroBatch.auto:
        hint = f"batch.micro=null, or {without}"
        yield Problem("batch.micro", f"auto with {_SEQUENCE}={size}", hint)
    if heads and heads % size:
        found = f"{size} ranks a sequence, which cannot share {heads} attention heads"
        yield Problem(_SEQUENCE, found, f"it divides the heads: {_SEQUENCE}={near}")


def _heads(config: Config) -> int | None:
    """Attention heads of the model, as far as its files are here."""
    shape = memory.model_shape(config)
    if shape is None:
        return None
    text = shape.content.get("text_config", shape.content)
    found = (text.get(name) for name in ("num_attention_heads", "n_head", "n_heads", "num_heads"))
    return next((heads for heads in found if isinstance(heads, int)), None)
