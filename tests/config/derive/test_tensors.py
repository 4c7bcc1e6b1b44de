"""What a plan says of trained parameters, against the models themselves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from launcher.config.derive import memory
from launcher.config.derive.tensors import COUNTED
from launcher.config.schema import LoraConfig
from launcher.errors import ConfigError
from launcher.peft.lora import apply, describe
from support.adapted import FAMILIES, family
from support.configs import make_config

OPTIONS: list[dict[str, Any]] = [
    {"rank": 3},
    {"rank": 3, "experts": False},
    {"rank": 3, "targets": ["all-linear", "router"]},
    {"rank": 3, "targets": ["all-linear", "gate"]},
    {"rank": 3, "targets": ["q_proj", "o_proj"]},
    {"rank": 3, "targets": ["down_proj"]},
    {"rank": 3, "targets": ["experts"]},
    {"rank": 3, "dora": True, "targets": ["q_proj", "o_proj"]},
    {"rank": 3, "modules_to_save": ["embed_tokens"]},
    {"rank": 3, "modules_to_save": ["embed_tokens", "lm_head"]},
]


def planned(folder: Path, **peft: Any) -> int | None:
    options = {"name": "lora", **peft} if peft else {"name": "none"}
    config = make_config(model={"name": str(folder)}, peft=options)
    shape = memory.model_shape(config)
    assert shape is not None
    return memory.trainable(config, shape)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_plan_counts_what_is_trained(tmp_path: Path, name: str) -> None:
    model = AutoModelForCausalLM.from_config(family(name))
    model.save_pretrained(tmp_path)
    assert planned(tmp_path) == describe(model)[0]
    counted = 0
    for options in OPTIONS:
        try:
            adapted = apply(AutoModelForCausalLM.from_config(family(name)), LoraConfig(**options))
        except ConfigError:
            continue  # the family has no such layer
        counted += 1
        assert planned(tmp_path, **options) == describe(adapted)[0], options
    assert counted >= 1
    assert model.config.model_type in COUNTED


def test_of_an_unknown_architecture_nothing_is_claimed(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(family("llama")).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "model_type": "new"}))
    assert planned(tmp_path, rank=4) is None


def test_a_layer_that_is_not_there_is_not_counted(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(family("llama")).save_pretrained(tmp_path)
    assert planned(tmp_path, targets=["q_proj", "c_attn"]) is None


def test_adapted_experts_are_kept_a_second_time_or_a_layer_of_them(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(family("mixtral")).save_pretrained(tmp_path)

    def activations(experts: bool, checkpointing: bool) -> int:
        config = make_config(
            model={"name": str(tmp_path), "gradient_checkpointing": checkpointing},
            peft={"name": "lora", "experts": experts},
        )
        found = memory.estimate(
            config,
            memory.model_shape(config),
            world_size=1,
            micro_batch=1,
            precision="bf16",
            dtype="bf16",
        )
        assert found is not None
        return found["activations"]

    layer = 4 * 3 * 32 * 48 * 2  # experts, matrices, sizes, bytes
    assert activations(True, False) - activations(False, False) == 2 * layer
    assert activations(True, True) - activations(False, True) == layer
