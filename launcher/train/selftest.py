"""Checks on the user's own model: packed documents stay apart, and every adapter learns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch

from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.loader import make_row
from launcher.errors import ConfigError
from launcher.model.class_head import ClassHead
from launcher.model.head import TargetHead
from launcher.train.distributed import gather_objects
from launcher.train.engine import Piece

#: Longest document of the check in tokens: longer ones would only cost time.
_LONGEST = 256

#: Largest mean change of a target's loss, in nats. An isolated document does not change at all; one
#: that sees other tokens changes by far more, also in 16 bit.
_TOLERANCE = 0.01


def check_isolation(
    head: TargetHead | ClassHead, engine: Any, cache: TokenCache | JoinedCache, device: torch.device
) -> None:
    """Change the first of two packed documents and see that the second one's losses stay.

    All ranks call it with the same cache. Raises `ConfigError` for a model whose layers carry state
    across documents (state-space and linear-attention models), which no attention can prevent.
    """
    chosen = [i for i in range(min(len(cache), 1000)) if 1 < len(cache.record(i)[0]) <= _LONGEST][
        :2
    ]
    if len(chosen) < 2:
        return
    row = make_row(cache, chosen)
    border = int(row.document_starts[1])
    second = row.target_index >= border
    if not second.any():
        return
    other = row.input_ids.clone()
    other[:border] = row.input_ids[border]
    changed = replace(row, input_ids=other)
    before, _ = head.score(engine, row.to(device))
    after, _ = head.score(engine, changed.to(device))
    difference = float((before - after).abs()[second.to(device)].mean())
    if difference > _TOLERANCE:
        raise ConfigError(
            f"packed documents see each other in this model: changing one moves the loss of its"
            f" neighbour by {difference:.2g} nats a token",
            where="data.packing",
            hint="set data.packing=false",
        )


def silent_adapters(pieces: Iterable[Piece]) -> list[str]:
    """Adapters that the first step has left as they began, so that no gradient reaches them.

    The outer matrix of an adapter begins at zero. `pieces` are this rank's; all ranks call it.
    """
    largest: dict[str, float] = {}
    for piece in pieces:
        if ".lora_B." in piece.name:
            size = float(piece.of(piece.flat).abs().max())
            largest[piece.name] = max(size, largest.get(piece.name, 0.0))
    moved: dict[str, bool] = {}
    for found in gather_objects({name: size > 0 for name, size in largest.items()}):
        for name, has_moved in found.items():
            moved[name] = moved.get(name, False) or has_moved
    return sorted(name.rpartition(".lora_B.")[0] for name, has in moved.items() if not has)
