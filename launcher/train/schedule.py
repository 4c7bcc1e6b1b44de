"""Learning-rate schedules: a factor of the peak rate as a pure function of the step."""

from __future__ import annotations

import math

from launcher.config.schema import ScheduleConfig, WsdConfig


def factor(schedule: ScheduleConfig, step: int, steps: int, warmup_steps: int) -> float:
    """Factor for optimizer step `step` (0-based) of `steps`.

    The first step of a warm-up already moves: it has factor 1 / (warmup_steps + 1). A decay begins
    at 1 and would reach `min_ratio` one step after the last, so no step is taken at a rate of 0.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    begin = warmup_steps
    if isinstance(schedule, WsdConfig):
        begin = max(warmup_steps, steps - round(schedule.decay * steps))
    if schedule.name == "constant" or step < begin:
        return 1.0
    progress = min(1.0, (step - begin) / max(1, steps - begin))
    if schedule.name == "cosine":
        decayed = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        decayed = 1 - progress
    return schedule.min_ratio + (1 - schedule.min_ratio) * decayed
