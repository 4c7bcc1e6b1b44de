"""What a plan says of trained parameters, against the models themselves."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

import peft
from launcher.config.derive import memory, peak
from launcher.config.derive.tensors import COUNTED
from launcher.config.schema import AdapterConfig, LoraConfig
from launcher.core.errors import ConfigError
from launcher.model.adapter import count_parameters
from launcher.peft.lora import apply
from support.adapted import FAMILIES, family
from support.configs import make_config
from support.draws import some

OPTIONS: list[dict[str, Any]] = [
    {"rank": 3},
    {"rank": 3, "experts": False},
    {"rank": 3, "targets": ["all-linear", "router"]},
    {"rank": 3, "targets": ["all-linear", "gate"]},
    {"rank": 3, "targets": ["q_proj", "o_proj"]},
    {"rank": 3, "targets": ["down_proj"]},
    {"rank": 3, "targets": ["experts"]},
    {"rank": 3, "rslora": True, "targets": ["q_proj", "o_proj"]},
    {"rank": 3, "dora": True},
    {"rank": 3, "dora": True, "experts": False},
    {"rank": 3, "dora": True, "targets": ["q_proj", "o_proj"]},
    {"rank": 3, "dora": True, "targets": ["all-linear", "embed_tokens", "lm_head"]},
    {"rank": 3, "dora": True, "targets": ["wte", "c_proj"]},
    {"rank": 3, "targets": ["embed_tokens"]},
    {"rank": 3, "modules_to_save": ["norm"]},
    {"rank": 3, "dora": True, "modules_to_save": ["o_proj", "lm_head"]},
    {"rank": 3, "modules_to_save": ["embed_tokens"]},
    {"rank": 3, "modules_to_save": ["embed_tokens", "lm_head"]},
]


def planned(folder: Path, **peft: Any) -> int | None:
    options = {"name": "lora", **peft} if peft else {"name": "none"}
    config = make_config(model={"name": str(folder)}, peft=options)
    shape = memory.model_shape(config)
    assert shape is not None
    return memory.trainable(config, shape)


@pytest.mark.thorough
@pytest.mark.parametrize("name", some(FAMILIES, "llama", "qwen3_moe", "deepseek_v3"))
def test_the_plan_counts_what_is_trained(tmp_path: Path, name: str) -> None:
    model = AutoModelForCausalLM.from_config(family(name))
    model.save_pretrained(tmp_path)
    assert planned(tmp_path) == count_parameters(model)[0]
    counted = 0
    for options in OPTIONS:
        try:
            adapted = apply(AutoModelForCausalLM.from_config(family(name)), LoraConfig(**options))
        except ConfigError:
            continue  # the family has no such layer
        counted += 1
        assert planned(tmp_path, **options) == count_parameters(adapted)[0], options
    assert counted >= 1
    assert model.config.model_type in COUNTED


@pytest.mark.thorough
@pytest.mark.parametrize("name", memory.PLAIN)
def test_a_plain_decoder_is_counted_without_its_weights(tmp_path: Path, name: str) -> None:
    config = family(name)
    config.attention_bias = config.mlp_bias = name == "granite"
    config.save_pretrained(tmp_path)
    assert planned(tmp_path) == count_parameters(AutoModelForCausalLM.from_config(config))[0]
    for options in OPTIONS:
        try:
            adapted = apply(AutoModelForCausalLM.from_config(config), LoraConfig(**options))
        except ConfigError:
            continue  # no such layer
        assert planned(tmp_path, **options) == count_parameters(adapted)[0], options


@dataclass(kw_only=True, slots=True)
class Ia3Config(AdapterConfig):
    """A method that is none of ours: a factor for each output of a matrix."""

    name: str = "ia3"

    def parameters(self, inputs: int, outputs: int, experts: int = 1) -> int:
        return experts * outputs


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_a_method_counts_itself(tmp_path: Path, name: str) -> None:
    model = AutoModelForCausalLM.from_config(family(name))
    model.save_pretrained(tmp_path)
    targets = ["q_proj", "v_proj", "up_proj"]
    options = peft.IA3Config(target_modules=targets, feedforward_modules=[])
    trained = count_parameters(peft.get_peft_model(model, options))[0]
    config = make_config(model={"name": str(tmp_path)})
    config.peft = Ia3Config(targets=targets)
    shape = memory.model_shape(config)
    assert shape is not None
    assert memory.trainable(config, shape) == trained
    assert memory.about_trainable(config, shape) == trained
    found = peak.estimate(config, shape, peak.Cut(1, 1, 2, "cpu", "fp32", "fp32", 2))
    assert found is not None
    assert found["weights"] == 4 * (shape.parameters + trained)
    assert found["optimizer"] == (8 + 4) * trained


@pytest.mark.parametrize(
    "options",
    [{}, *({"rank": 4} | more for more in ({}, {"dora": True}, {"rslora": True})), {"adapter": 1}],
    ids=["none", "lora", "dora", "rslora", "adapter"],
)
def test_bytes_are_those_of_what_is_trained(tmp_path: Path, options: dict[str, Any]) -> None:
    model = AutoModelForCausalLM.from_config(family("mistral"))
    model.save_pretrained(tmp_path)
    if "adapter" in options:
        made = peft.get_peft_model(model, peft.LoraConfig(r=5, use_dora=True))
        made.save_pretrained(tmp_path / "adapter")
        options = {"adapter": str(tmp_path / "adapter")}
    elif options:
        made = apply(model, LoraConfig(**options))
    trained = count_parameters(made if options else model)[0]
    section = {"name": "lora", **options} if options else {"name": "none"}
    config = make_config(model={"name": str(tmp_path)}, peft=section, engine={"zero": 0})
    shape = memory.model_shape(config)
    found = peak.estimate(config, shape, peak.Cut(1, 1, 2, "cpu", "fp32", "fp32", 0))
    assert found is not None
    assert shape is not None
    assert found["gradients"] == 4 * trained
    assert found["optimizer"] == 8 * trained
    assert found["weights"] == 4 * (shape.parameters + (trained if options else 0))


def test_of_an_unknown_architecture_nothing_is_claimed(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(family("llama")).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**content, "model_type": "new"}))
    assert planned(tmp_path, rank=4) is None


def test_a_layer_that_is_not_there_is_not_counted(tmp_path: Path) -> None:
    AutoModelForCausalLM.from_config(family("llama")).save_pretrained(tmp_path)
    assert planned(tmp_path, targets=["q_proj", "c_attn"]) is None


def test_adapted_experts_are_kept_a_second_time_or_a_layer_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(peak.LOGITS, "cuda", 1)  # so that the layers are what counts
    AutoModelForCausalLM.from_config(family("mixtral")).save_pretrained(tmp_path)

    def activations(experts: bool, checkpointing: bool) -> int:
        config = make_config(
            model={"name": str(tmp_path), "gradient_checkpointing": checkpointing},
            peft={"name": "lora", "experts": experts},
        )
        cut = peak.Cut(1, 1, 1, "cuda", "bf16", "bf16", None)
        found = peak.estimate(config, memory.model_shape(config), cut)
        assert found is not None
        return found["activations"]

    layer = 4 * 3 * 32 * 48 * 2  # experts, matrices, sizes, bytes
    assert activations(True, False) - activations(False, False) == 2 * layer
    assert activations(True, True) - activations(False, True) == layer
