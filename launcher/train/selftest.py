"""A check on the user's own model after its first step: every adapter learns."""

from __future__ import annotations

from collections.abc import Iterable

from launcher.train.distributed import gather_objects
from launcher.train.engine import Piece


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
