"""Where values come from, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from launcher.config.compose import compose, explanation
from launcher.config.schema import conversion
from launcher.core import runtime
from launcher.core.errors import ConfigError

CONF = runtime.conf_dir()


@pytest.mark.parametrize(
    ("words", "key", "expected"),
    [
        (
            ["experiment=gsm8k", "optim.lr=3"],
            "optim.lr",
            [
                ("schema default of optim=adamw", 2e-5),
                (str(CONF / "optim/adamw.yaml"), 2e-5),
                (str(CONF / "experiment/gsm8k.yaml"), 1e-3),
                ("override optim.lr=3", 3),
            ],
        ),
        ([], "data.max_length", [("schema default", 1024)]),
        ([], "seed", [("schema default", 0), (str(CONF / "config.yaml"), 0)]),
        (
            ["track=wandb"],
            "track.wandb.mode",
            [("schema default", "disabled"), (str(CONF / "track/wandb.yaml"), "auto")],
        ),
        (
            ["peft=dora"],
            "peft.dora",
            [("schema default of peft=lora", False), (str(CONF / "peft/dora.yaml"), True)],
        ),
        (
            ["train.steps=3"],
            "train.epochs",
            [
                ("schema default", None),
                (str(CONF / "config.yaml"), 1),
                ("override train.steps=3 (replaces train.epochs)", None),
            ],
        ),
        (["engine.extra.a.b=3"], "engine.extra.a.b", [("override engine.extra.a.b=3", 3)]),
        (
            ["engine.extra={a: {b: 3}}"],
            "engine.extra.a.b",
            [("override engine.extra={a: {b: 3}}", 3)],
        ),
        (
            ["experiment=gsm8k", "data.columns={prompt: q}"],
            "data.columns.prompt",
            [
                (str(CONF / "experiment/gsm8k.yaml"), "question"),
                ("override data.columns={prompt: q}", "q"),
            ],
        ),
    ],
)
def test_sources(words: list[str], key: str, expected: list[tuple[str, Any]]) -> None:
    found = explanation.explain(words, key)
    assert [(source.place, source.value) for source in found] == expected


@pytest.mark.parametrize("words", [["experiment=gsm8k", "peft=lora"], ["train.steps=4", "seed=3"]])
def test_the_last_source_is_what_composition_gives(words: list[str]) -> None:
    config = conversion.to_dict(compose.compose(words))
    keys = ["seed", "optim.lr", "engine.zero", "train.epochs", "train.steps", "eval.metrics"]
    for key in keys:
        assert explanation.explain(words, key)[-1].value == conversion.select(config, key), key


def test_a_folder_of_the_user_is_named(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    file = tmp_path / "experiment" / "mine.yaml"
    file.write_text("# @package _global_\nseed: 5\n")
    found = explanation.explain(["experiment=mine"], "seed", [tmp_path])
    assert (found[-1].place, found[-1].value) == (str(file), 5)


@pytest.mark.parametrize(
    ("words", "key", "hint"),
    [([], "optm.lr", "'optim.lr'"), ([], "optim", "optim.lr"), (["seed=x"], "seed", "digits")],
)
def test_refused(words: list[str], key: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        explanation.explain(words, key)
    assert hint in caught.value.problems[0].hint


def test_text() -> None:
    text = explanation.text(explanation.explain(["optim.lr=3"], "optim.lr"), "optim.lr")
    first, second, *rest = text.splitlines()
    assert first == "optim.lr = 3"
    assert second.split(maxsplit=2)[2] == "override optim.lr=3"
    assert all(line.split()[0] == "replaces" for line in rest)
