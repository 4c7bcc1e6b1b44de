"""Evaluators of the held-out records and of what is scored beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from launcher.config.derive.plan import Plan
from launcher.config.schema import Config
from launcher.config.schema.variants import metrics_of
from launcher.core.runtime import Ranks
from launcher.data.cache import TokenCache
from launcher.data.chat.turn_ends import taught
from launcher.evals import generation
from launcher.evals.comparison.record_sets import TRAIN
from launcher.evals.records import Generation
from launcher.model.head import Head
from launcher.objectives.base import Objective
from launcher.scoring.evaluate import Evaluator


def make_evaluator(
    config: Config,
    plan: Plan,
    ranks: Ranks,
    folders: Mapping[str, Any],
    tokenizer: Any,
    head: Head,
    device: torch.device,
    should_stop: Callable[[], bool],
    objective: Objective,
    generate: Callable[..., list[Generation]] = generation.generate_records,
) -> Evaluator:
    """The evaluator of the held-out records of a run, with those of all further sets.

    `folders` is data.json; the other arguments are those of `Evaluator`. Of the training records
    only the loss is taken, of as many as are held out and evenly spread. Raises `DataError`
    for records that the objective cannot score.
    """

    def make(split: str, of: Config = config) -> Evaluator:
        cache = TokenCache.open(Path(folders[split]))
        objective.prepare(cache)
        common = (tokenizer, head, device, should_stop, objective, generate, ends)
        return Evaluator(of, plan, ranks, cache, *common)

    ends = taught(folders, tokenizer)
    evaluator = make("validation")
    for split, folder in folders.items():
        if isinstance(folder, str) and split not in ("validation", TRAIN):
            evaluator.further[split] = make(split)
    if "loss" in metrics_of(config):
        seen = make(TRAIN, replace(config, eval=replace(config.eval, metrics=["loss"])))
        seen.ids = evenly(len(seen.cache), len(evaluator.ids))
        evaluator.further[TRAIN] = seen
    return evaluator


def evenly(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spaced."""
    most = min(most, count)
    return [i * count // most for i in range(most)]
