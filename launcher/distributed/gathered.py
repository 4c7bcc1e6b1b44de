"""Weights for making answers: laid out for few rows, and under ZeRO-3 all of them on every rank, or
sharded as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch

from launcher.config.derive import memory
from launcher.config.schema import Config
from launcher.core.runtime import Ranks
from launcher.distributed import collectives, devices
from launcher.model import products

#: What the weights may take of the free memory; activations and logits need some of the rest.
SHARE = 0.7


@contextlib.contextmanager
def for_generation(
    model: Any, config: Config, ranks: Ranks, say: Callable[[str], None]
) -> Iterator[bool]:
    """Around the making of answers; gives whether all ranks must run the same number of forwards.

    A sharded model that fits every rank is gathered once, and ranks answer independently;
    otherwise each layer is gathered whenever a token is made. `eval.gather_weights` decides if set.
    """
    sharded = [p for p in model.parameters() if hasattr(p, "ds_numel")]
    if not sharded:
        with _laid_out(model, ranks):
            yield False
        return
    needed = _needed(sharded, config)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    free = int(min(collectives.gather_objects(devices.free_memory(ranks, device))))
    fits = needed <= SHARE * free
    wanted = config.eval.gather_weights
    gathers = fits if wanted is None else wanted
    how = "gathered on every rank" if gathers else "left sharded"
    why = "as eval.gather_weights says" if wanted is not None else "by memory"
    say(
        f"answers: weights {how}, {why}: {needed / 1e9:.2f} GB with the cache,"
        f" {free / 1e9:.2f} GB free"
    )
    if not gathers:
        yield True
        return
    import deepspeed

    gathered = deepspeed.zero.GatheredParameters(sharded)
    with gathered, _without_hooks(model), _laid_out(model, ranks):
        yield False


def _laid_out(model: Any, ranks: Ranks) -> contextlib.AbstractContextManager[None]:
    """Where there is room for copies of the weights beside what answers need."""
    free = devices.free_memory(ranks, torch.device("cpu"))
    return products.laid_out(model, min(products.MOST_BYTES, free // 2))


def _needed(sharded: list[Any], config: Config) -> int:
    """Bytes of the whole weights and of a batch's keys and values."""
    weights = sum(int(p.ds_numel) * p.element_size() for p in sharded)
    shape = memory.model_shape(config)
    if shape is None:
        return weights
    size = max(p.element_size() for p in sharded)
    return weights + 2 * config.eval.batch_tokens * shape.layers * shape.kv_width * size


@contextlib.contextmanager
def _without_hooks(model: Any) -> Iterator[None]:
    """DeepSpeed's hooks would shard each layer again after its first forward."""
    tables = [t for m in model.modules() for t in (m._forward_pre_hooks, m._forward_hooks)]
    before = [dict(table) for table in tables]
    for table in tables:
        for key, hook in list(table.items()):
            if hook.__module__.startswith("deepspeed"):
                del table[key]
    try:
        yield
    finally:
        for table, hooks in zip(tables, before, strict=True):  # in their order
            table.clear()
            table.update(hooks)
