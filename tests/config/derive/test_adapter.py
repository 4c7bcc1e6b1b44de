"""An adapter's folder as a run's start: what follows from it, and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.config.compose import compose
from launcher.config.schema import Config, LoraConfig

SAVED: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "org/base",
    "revision": "abc",
    "r": 7,
    "lora_alpha": 9,
    "lora_dropout": 0.0,
    "use_dora": False,
    "use_rslora": True,
    "target_modules": ["v_proj", "q_proj"],
    "target_parameters": ["experts.down_proj"],
    "modules_to_save": ["embed_tokens"],
    "bias": "none",
    "init_lora_weights": True,
}


def make(folder: Path, **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**SAVED, **changes}))
    (folder / "tokenizer_config.json").write_text("{}")
    return str(folder)


def composed(*words: str) -> tuple[Config, list[Any]]:
    return compose.try_compose(["data.train=x.jsonl", *words])


def test_lora_trains_the_adapter_further_with_its_own_options(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    config, problems = composed("experiment=lora", f"model.name={folder}")
    assert not problems
    assert isinstance(config.peft, LoraConfig)
    assert (config.model.name, config.model.revision) == ("org/base", "abc")
    assert config.model.tokenizer == config.peft.adapter == folder
    assert config.model.adapter is None
    assert (config.peft.rank, config.peft.alpha, config.peft.rslora) == (7, 9, True)
    assert config.peft.targets == ["q_proj", "v_proj", "experts.down_proj"]
    assert config.peft.modules_to_save == ["embed_tokens"]


def test_it_is_merged_first_for_all_weights_or_if_asked(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    config, problems = composed("experiment=full", f"model.name={folder}")
    assert not problems
    assert (config.model.name, config.model.adapter) == ("org/base", folder)
    config, problems = composed("experiment=lora", f"model.adapter={folder}", "peft.rank=3")
    assert not problems
    assert isinstance(config.peft, LoraConfig)
    assert (config.model.name, config.model.adapter) == ("org/base", folder)
    assert (config.peft.adapter, config.peft.rank) == (None, 3)


def test_a_settled_config_stays_as_it_is(tmp_path: Path) -> None:
    config, _ = composed("experiment=lora", f"model.name={make(tmp_path / 'a')}")
    compose.save(config, tmp_path / "config.yaml")
    assert compose.load(tmp_path / "config.yaml") == config


def test_a_base_that_has_moved_can_be_named(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", base_model_name_or_path="/gone/base")
    _, problems = composed("experiment=lora", f"model.name={folder}")
    (problem,) = problems
    assert problem.where == "peft.adapter"
    assert "/gone/base" in problem.found
    words = problem.hint.removeprefix("name it: ").replace("BASE", "org/other").split()
    config, problems = composed("experiment=lora", *words)
    assert not problems
    assert config.model.name == "org/other"


def test_an_option_that_the_adapter_says_otherwise_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "a")
    words = ["experiment=lora", f"model.name={folder}", "peft.rank=8", "peft.alpha=9"]
    _, problems = composed(*words)
    (problem,) = problems
    assert (problem.where, problem.found) == ("peft.rank", "8, but the adapter has 7")
    assert f"model.adapter={folder}" in problem.hint


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        ({"peft_type": "LOHA"}, "LOHA"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
        ({"task_type": "SEQ_CLS"}, "classifier"),
        ({"bias": "all"}, "bias=all"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"base_model_name_or_path": None}, "does not name its base"),
    ],
)
@pytest.mark.parametrize("recipe", ["lora", "full"])
def test_what_cannot_be_gone_on_from_is_refused_by_name(
    tmp_path: Path, changes: dict[str, Any], found: str, recipe: str
) -> None:
    folder = make(tmp_path / "a", **changes)
    _, problems = composed(f"experiment={recipe}", f"model.name={folder}")
    assert [found in problem.found for problem in problems] == [True]


def test_an_adapter_on_an_adapter_is_refused(tmp_path: Path) -> None:
    inner = make(tmp_path / "inner")
    folder = make(tmp_path / "a", base_model_name_or_path=inner)
    _, problems = composed("experiment=lora", f"model.name={folder}")
    assert ["is an adapter too" in problem.found for problem in problems] == [True]


def test_a_folder_without_an_adapter_is_no_adapter(tmp_path: Path) -> None:
    _, problems = composed("experiment=lora", f"model.adapter={tmp_path}")
    assert [problem.where for problem in problems] == ["model.adapter"]
    _, problems = composed("experiment=lora", "model=tiny", f"model.adapter={make(tmp_path / 'a')}")
    assert "without model=tiny" in problems[0].hint
