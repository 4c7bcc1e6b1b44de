"""Results of a model, by what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from launcher.evals.records import Generation, LossRecord, Results, ScoredRecord


def results_of(
    losses: Sequence[LossRecord] = (),
    generations: Sequence[Generation] = (),
    classes: Sequence[ScoredRecord] = (),
    further: dict[str, Results] | None = None,
) -> Results:
    """Results of these records; a pass without any was not made."""
    passes: dict[str, Any] = {"loss": losses, "generation": generations, "classes": classes}
    return Results({name: list(own) for name, own in passes.items() if own}, further or {})
