"""The rules of the global batch: how it is stated, and whether the ranks can share it."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.config.check.parallel_checks import groups
from launcher.config.derive import plan
from launcher.config.schema import Config, MicroBatch
from launcher.core.errors import Problem

#: keys that the rules here take part in; while one of them is out of range they say nothing.
KEYS = ("batch.tokens", "batch.sequences", "batch.micro", "data.max_length")


def check(config: Config, world_size: int | None) -> Iterator[Problem]:
    """Problems of the `batch` section for `world_size` ranks (None: number of ranks not known)."""
    tokens, sequences = config.batch.tokens, config.batch.sequences
    length = config.data.max_length
    if (tokens is None) == (sequences is None):
        found = "neither is given" if tokens is None else f"tokens={tokens}, sequences={sequences}"
        hint = "e.g. batch.sequences=64: the batch of one optimizer step over all ranks"
        yield Problem("batch", f"give tokens or sequences, one of them: {found}", hint)
        return
    if tokens is not None and not config.data.packing:
        found = f"{tokens} with data.packing=false, where sequences are not of equal length"
        yield Problem("batch.tokens", found, f"use batch.sequences={max(1, tokens // length)}")
        return
    if tokens is not None and tokens % length:
        found = f"{tokens} is not a multiple of data.max_length={length}"
        yield Problem("batch.tokens", found, _nearest("batch.tokens", tokens, length))
        return
    if config.batch.micro is MicroBatch.auto and config.model.activation_gib is not None:
        found = (
            "auto with model.activation_gib, which recomputes as many layers as a micro-batch asks"
        )
        yield Problem("batch.micro", found, "batch.micro=null, or model.activation_gib=null")
        return
    if world_size is not None:
        yield from _cut(config, world_size)


def _cut(config: Config, world_size: int) -> Iterator[Problem]:
    count = groups(config, world_size)
    who = f"{count} ranks" if count == world_size else f"{count} groups of ranks"
    total = plan.global_sequences(config)
    in_tokens = config.batch.tokens is not None
    key = "batch.tokens" if in_tokens else "batch.sequences"
    unit = config.data.max_length if in_tokens else 1
    micro = None if config.batch.micro is MicroBatch.auto else config.batch.micro
    if total % count:
        found = f"{total * unit} ({total} sequences) cannot be shared by {who}"
        found = found if in_tokens else f"{total} cannot be shared by {who}"
        yield Problem(key, found, _nearest(key, total * unit, count * (micro or 1) * unit))
    elif micro is not None and total // count % micro:
        share = total // count
        sizes = ", ".join(str(size) for size in plan.divisors(share))
        yield Problem(
            "batch.micro",
            f"{micro} does not divide the {share} sequences of a rank ({total} over {count})",
            f"use one of {sizes}; or {_nearest(key, total * unit, count * micro * unit)}",
        )


def _nearest(key: str, value: int, step: int) -> str:
    """The multiples of `step` next to `value`, as a hint."""
    below = value // step * step
    near = [number for number in (below, below + step) if number > 0]
    return "nearest that can: " + " or ".join(f"{key}={number}" for number in near)
