"""Section on sweeps: `sweep`. Only `launcher train -m` reads it; a trial's own config has none."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Annotated

from launcher.config.schema.ranges import NonNegativeInt, PositiveInt, Range, Seed


class Direction(Enum):
    """Which values of the metric are better."""

    auto = "auto"
    minimize = "minimize"
    maximize = "maximize"


class Sampler(Enum):
    """What proposes the next trial."""

    tpe = "tpe"
    random = "random"


class Pruner(Enum):
    """What ends a trial that falls behind."""

    none = "none"
    asha = "asha"
    hyperband = "hyperband"
    median = "median"


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    """`grid`: every combination of the values on the command line."""

    name: str = "grid"
    """What chooses the trials: grid, random or optuna."""
    metric: str = "eval/loss"
    """What trials are compared by: a key of metrics.jsonl, eval/METRIC or that of a training step,
    such as loss; its last value counts."""
    direction: Direction = Direction.auto
    """minimize or maximize; `auto` knows the metrics of this package."""


@dataclass(kw_only=True, slots=True)
class RandomSweepConfig(SweepConfig):
    """`random`: draws from the values and intervals on the command line."""

    name: str = "random"
    """What chooses the trials."""
    trials: PositiveInt = 20
    """Number of trials."""
    seed: Seed = 0
    """Seed of the choice."""


@dataclass(kw_only=True, slots=True)
class OptunaSweepConfig(RandomSweepConfig):
    """`optuna`: proposes trials by the results of earlier ones, and ends those that fall behind."""

    name: str = "optuna"
    """What chooses the trials."""
    sampler: Sampler = Sampler.tpe
    """tpe (tree-structured Parzen estimator, Bergstra et al. 2011) or random."""
    startup_trials: NonNegativeInt = 10
    """Trials drawn at random before tpe begins."""
    pruner: Pruner = Pruner.none
    """none, asha (asynchronous successive halving, Li et al. 2020, arXiv:1810.05934), hyperband or
    median; needs values of the metric during training, e.g. by eval.every_steps."""
    prune_from: PositiveInt = 1
    """First step at which a trial can be ended."""
    reduction: Annotated[int, Range(2)] = 4
    """asha, hyperband: one in so many trials goes on from each rung to the next."""
