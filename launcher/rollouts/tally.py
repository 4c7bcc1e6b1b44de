"""Rewards of a rollout as a table, and what is logged of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from launcher.objectives.grpo.advantages import without_spread
from launcher.rollouts.answer import ERROR, ScoredAnswer

Sums = dict[str, tuple[float, float]]


def rewards_of(answers: Sequence[ScoredAnswer], group_size: int) -> NDArray[np.float64]:
    """fp64 [prompts, group], NaN where there is none; `answers` are in their order."""
    found = [np.nan if own.reward is None else own.reward for own in answers]
    return np.array(found, np.float64).reshape(-1, group_size)


def tally(answers: Sequence[ScoredAnswer], group_size: int) -> Sums:
    """Numerators and denominators of what is logged, as far as the answers tell."""
    count = float(len(answers))
    scores = [own.score for own in answers if own.score is not None]
    found: Sums = {
        "answer_tokens": (float(sum(own.length for own in answers)), count),
        "cut_share": (float(sum(own.cut for own in answers)), count),
        "left_out": (float(sum(not own.is_learned for own in answers)), count),
        "grader_errors": (float(sum(bool(own.errors) for own in answers)), count),
    }
    if any(own.messages for own in answers):
        found["turns"] = float(sum(len(own.turns) for own in answers)), count
        failed = sum(any(text.startswith(ERROR) for text in own.errors) for own in answers)
        found["environment_errors"] = float(failed), count
    if scores:
        found["score"] = float(sum(scores)), float(len(scores))
    if scores and group_size > 1:
        flat = without_spread(rewards_of(answers, group_size))
        found["flat_groups"] = float(flat.sum()), count / group_size
    for name in sorted({name for own in answers for name in own.sub_scores}):
        known = [s for own in answers if (s := own.sub_scores.get(name)) is not None]
        found[f"score/{name}"] = (float(sum(known)), float(len(known)))
    return found
