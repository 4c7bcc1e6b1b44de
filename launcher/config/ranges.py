"""Which numbers each config key may hold. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from launcher.config.schema import Config
from launcher.errors import Problem


@dataclass(frozen=True, slots=True)
class Range:
    """An interval; `open_low` and `open_high` leave the end itself out."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` is finite and inside."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        low = f"{'above' if self.open_low else 'at least'} {self.low:,}"
        if math.isinf(self.high):
            return low
        return f"{low} and {'below' if self.open_high else 'at most'} {self.high:,}"


_COUNT = Range(1)
_POSITIVE = Range(0, open_low=True)
_NOT_NEGATIVE = Range(0)
_SHARE = Range(0, 1)
_SHARE_ABOVE_0 = Range(0, 1, open_low=True)
_SHARE_BELOW_1 = Range(0, 1, open_high=True)

#: dotted key -> range; a key that the chosen variant does not have, or that is null, is not looked
#: at.
RANGES: dict[str, Range] = {
    "seed": Range(0, 2**32 - 1),
    "model.vocab_size": Range(264),
    "model.hidden_size": _COUNT,
    "model.intermediate_size": _COUNT,
    "model.layers": _COUNT,
    "model.heads": _COUNT,
    "model.kv_heads": _COUNT,
    "model.max_positions": Range(2),
    "data.validation_share": _SHARE_BELOW_1,
    "data.max_length": Range(2),
    "data.limit": _COUNT,
    "data.workers": _COUNT,
    "data.temperature": _POSITIVE,
    "data.report.near_duplicate": _SHARE_ABOVE_0,
    "data.report.leak_ngram": _COUNT,
    "data.report.leak_share": _SHARE_ABOVE_0,
    "data.report.sample": _NOT_NEGATIVE,
    "data.report.examples": _NOT_NEGATIVE,
    "objective.label_smoothing": _SHARE_BELOW_1,
    "peft.rank": _COUNT,
    "peft.alpha": _POSITIVE,
    "peft.dropout": _SHARE_BELOW_1,
    "batch.tokens": _COUNT,
    "batch.sequences": _COUNT,
    "batch.micro": _COUNT,
    "train.steps": _COUNT,
    "train.epochs": _POSITIVE,
    "train.log_every_steps": _COUNT,
    "train.threads": _COUNT,
    "train.early_stop.patience": _COUNT,
    "train.early_stop.min_change": _NOT_NEGATIVE,
    "optim.lr": _POSITIVE,
    "optim.adam_lr": _POSITIVE,
    "optim.weight_decay": _NOT_NEGATIVE,
    "optim.clip_norm": _NOT_NEGATIVE,
    "optim.beta1": _SHARE_BELOW_1,
    "optim.beta2": _SHARE_BELOW_1,
    "optim.eps": _POSITIVE,
    "optim.momentum": _SHARE_BELOW_1,
    "schedule.warmup": _NOT_NEGATIVE,
    "schedule.min_ratio": _SHARE,
    "schedule.decay": Range(0, 1, open_low=True),
    "engine.zero": Range(0, 3),
    "checkpoint.every_steps": _COUNT,
    "checkpoint.keep_last": _COUNT,
    "checkpoint.keep_best": _NOT_NEGATIVE,
    "eval.every_steps": _COUNT,
    "eval.times": _COUNT,
    "eval.limit": _COUNT,
    "eval.generate_limit": _COUNT,
    "eval.max_new_tokens": _COUNT,
    "eval.temperature": _NOT_NEGATIVE,
    "eval.top_p": _SHARE_ABOVE_0,
    "eval.batch_tokens": _COUNT,
    "eval.samples": _NOT_NEGATIVE,
    "eval.judge.concurrency": Range(1, 256),
    "eval.judge.timeout_s": _POSITIVE,
    "eval.judge.retries": _NOT_NEGATIVE,
    "launch.nodes": _COUNT,
    "launch.processes": _COUNT,
    "launch.join_timeout_s": _COUNT,
    "launch.max_parallel": _COUNT,
    "launch.max_restarts": _NOT_NEGATIVE,
    "launch.max_requeues": _NOT_NEGATIVE,
    "launch.grace_s": Range(1, 65535),
    "sweep.trials": _COUNT,
    "sweep.seed": Range(0, 2**32 - 1),
    "sweep.startup_trials": _NOT_NEGATIVE,
    "sweep.prune_from": _COUNT,
    "sweep.reduction": Range(2),
    "cluster.gpus_per_node": _NOT_NEGATIVE,
    "cluster.cpus_per_rank": _COUNT,
    "watchdog.timeout_s": _NOT_NEGATIVE,
    "watchdog.start_s": _NOT_NEGATIVE,
    "watchdog.eval_s": _NOT_NEGATIVE,
    "watchdog.save_s": _NOT_NEGATIVE,
    "watchdog.slow_factor": Range(1, open_low=True),
    "watchdog.slow_steps": _COUNT,
}


def value_of(config: Config, key: str) -> Any:
    """The value at a dotted key; None where the chosen variant has no such field."""
    node: Any = config
    for name in key.split("."):
        node = getattr(node, name, None)
    return node


def out_of_range(config: Config) -> Iterator[Problem]:
    """A problem for each number outside its range, in the order of the table."""
    for key, allowed in RANGES.items():
        value = value_of(config, key)
        if value is not None and not allowed.holds(value):
            yield Problem(key, f"{value} is out of range", f"give a number {allowed}")
