"""The recipes: each can be planned, and those that are judged are so at least five times."""

from __future__ import annotations

import pytest

from launcher.config.check import checks
from launcher.config.compose import compose, groups
from launcher.config.derive import plan

#: What a recipe for any model and data leaves open.
OPEN = {
    "full": ["model=tiny", "data.train=x.jsonl"],
    "gsm8k": ["model=tiny", "data.train=x.jsonl"],
    "intents": ["model=tiny", "data.train=x.jsonl"],
    "lora": ["model=tiny", "data.train=x.jsonl"],
    "domain-sft": ["model=tiny"],
}


@pytest.mark.parametrize("name", groups.list_groups()["experiment"])
def test_a_recipe_is_evaluated_at_least_five_times(name: str) -> None:
    config = compose.compose([f"experiment={name}", *OPEN.get(name, [])])
    assert checks.check(config, world_size=2, has_gpu=False) == []
    if config.eval.name == "none":  # bases, of which nothing is asked
        assert name.endswith("-base")
        return
    for packs in (7, 100, 12_345):
        made = plan.make(config, world_size=2, has_gpu=False, train_packs=packs)
        assert made.steps is not None
        assert made.eval_steps is not None
        assert made.steps // made.eval_steps >= min(5, made.steps)


@pytest.mark.parametrize("name", ["full", "lora", "intents"])
def test_recipes_for_data_of_ones_own_stop_early_with_the_best_weights(name: str) -> None:
    config = compose.compose([f"experiment={name}", *OPEN[name]])
    assert config.train.early_stop.patience == 3
    assert plan.exports_best(config)
