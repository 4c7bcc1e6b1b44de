"""A check on the user's own model before the first step: packed documents stay apart."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from launcher.data.cache import JoinedCache, TokenCache
from launcher.data.loader import make_row
from launcher.errors import ConfigError
from launcher.model.class_head import ClassHead
from launcher.model.head import TargetHead

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
