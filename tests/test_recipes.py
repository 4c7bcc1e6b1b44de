"""The recipes as docs/recipes.md has them, shorter: few steps, on a base without pre-training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.ranks import environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SHORT = (
    *(
        "train.steps=12",
        "data.limit=300",
        "data.max_length=128",
        "launch.processes=1",
        "train.threads=1",
    ),
    *("eval.limit=60", "eval.generate_limit=60", "eval.max_new_tokens=8"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the recipes run."""
    return tmp_path_factory.mktemp("recipes")


def train(folder: Path, recipe: str, *words: str) -> dict[str, Any]:
    """Run a recipe; its comparison."""
    command = [sys.executable, "-m", "launcher.cli", "train", f"experiment={recipe}", *SHORT]
    done = subprocess.run(
        [*command, f"run.name={recipe}", *words],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    path = folder / "runs" / recipe / "eval" / "comparison.json"
    return dict(json.loads(path.read_text()))


def test_domain_text_then_questions_from_what_was_exported(folder):
    domain = train(folder, "domain", "model.recipe=null")
    assert domain["metrics"]["perplexity"]["verdict"] == "better"
    assert set(domain["further"]["general"]["metrics"]) == {"loss", "perplexity", "token_accuracy"}
    assert domain["gap"]["records"] == 60
    asked = train(folder, "domain-sft", "model.name=runs/domain/export")
    # It goes on from the exported weights: questions start where a random model does not.
    assert asked["metrics"]["loss"]["base"] < domain["metrics"]["loss"]["base"]
    assert asked["metrics"]["f1"]["records"] == 60


@pytest.mark.parametrize(
    ("recipe", "metrics"),
    [
        ("style", ["style_distance", "style_classifier", "numeric_match"]),
        ("summary", ["rouge1", "rouge2", "rougeL"]),
    ],
)
def test_answers_are_judged_by_what_the_recipe_is_about(folder, recipe, metrics):
    made = train(folder, recipe, "model.recipe=null")
    assert list(made["metrics"]) == ["loss", *metrics]
    assert made["metrics"]["loss"]["verdict"] == "better"
    for name in metrics:
        assert made["metrics"][name]["records"] == 60
        assert made["metrics"][name]["tuned"] is not None
