from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from launcher.config.schema import LoraConfig
from launcher.core.errors import ConfigError
from launcher.model.adapter import count_parameters
from launcher.peft.lora import apply

ALL = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def make(tied: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=tied,
        )
    ).to(dtype)


def trainable(model: Any) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def adapted_modules(model: Any) -> set[str]:
    return {
        name.split(".lora_A")[0].split(".")[-1] for name in trainable(model) if "lora_A" in name
    }


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        output: torch.Tensor = model(input_ids=torch.arange(20)[None]).logits
    return output


def test_all_linear_is_every_linear_layer_but_the_head() -> None:
    assert adapted_modules(apply(make(), LoraConfig())) == ALL


def test_only_named_targets_are_adapted_and_only_adapters_are_trained() -> None:
    model = apply(make(), LoraConfig(targets=["q_proj", "v_proj"]))
    assert adapted_modules(model) == {"q_proj", "v_proj"}
    assert all(".lora_A." in name or ".lora_B." in name for name in trainable(model))


@pytest.mark.parametrize("options", [{}, {"dora": True}, {"rslora": True}])
def test_fresh_adapters_change_nothing(options: dict[str, Any]) -> None:
    expected = logits(make())
    found = logits(apply(make(), LoraConfig(rank=4, **options)))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("rslora", "scale"), [(False, 32 / 16), (True, 32 / 4)])
def test_the_update_is_scaled_by_alpha_and_rank(rslora: bool, scale: float) -> None:
    model = apply(make(), LoraConfig(rank=16, alpha=32.0, rslora=rslora, targets=["q_proj"]))
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.lora_B["default"].weight.fill_(0.1)
    x = torch.randn(3, 32)
    low = layer.lora_B["default"](layer.lora_A["default"](x))
    torch.testing.assert_close(layer(x) - layer.base_layer(x), scale * low)


def test_adapters_take_the_dtype_of_the_base() -> None:
    model = apply(make(dtype=torch.bfloat16), LoraConfig(rank=4, dora=True))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_all_unknown_names_are_reported_at_once_with_the_closest_ones() -> None:
    config = LoraConfig(targets=["q_proj", "qproj", "gate"], modules_to_save=["embed_token"])
    with pytest.raises(ConfigError) as caught:
        apply(make(), config)
    found = {problem.found.split("'")[1]: problem for problem in caught.value.problems}
    assert found.keys() == {"qproj", "gate", "embed_token"}
    assert found["qproj"].where == "peft.targets"
    assert "'q_proj'" in found["qproj"].hint
    assert found["embed_token"].where == "peft.modules_to_save"
    assert "'embed_tokens'" in found["embed_token"].hint


def test_a_name_that_is_like_none_lists_those_that_can_be_chosen() -> None:
    with pytest.raises(ConfigError, match="choose one of: .*down_proj.*v_proj"):
        apply(make(), LoraConfig(targets=["zzz"]))


@pytest.mark.parametrize("targets", [[], [1], 3, None])
def test_targets_must_be_names(targets: Any) -> None:
    with pytest.raises(ConfigError, match="list of module names"):
        apply(make(), LoraConfig(targets=targets))


@pytest.mark.parametrize("saved", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head"]])
def test_tied_embeddings_stay_one_matrix(saved: list[str]) -> None:
    model = apply(make(tied=True), LoraConfig(rank=4, modules_to_save=saved))
    extra = [name for name in trainable(model) if "lora" not in name]
    assert len(extra) == 1
    inner = model.base_model.model
    assert inner.get_input_embeddings().weight is inner.get_output_embeddings().weight
    assert inner.get_input_embeddings().weight.requires_grad


def test_untied_modules_to_save_are_trained_each_for_itself() -> None:
    model = apply(make(), LoraConfig(rank=4, modules_to_save=["embed_tokens", "lm_head"]))
    assert len([name for name in trainable(model) if "lora" not in name]) == 2


def test_a_module_to_save_is_none_whose_name_only_ends_so() -> None:
    model = apply(make(), LoraConfig(rank=4, modules_to_save=["norm"]))
    (extra,) = (name for name in trainable(model) if "lora" not in name)
    assert extra.endswith("model.norm.modules_to_save.default.weight")
    assert model.peft_config["default"].modules_to_save == ["model.norm"]


def test_a_tied_embedding_that_peft_cannot_tie_is_refused() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(ConfigError, match="cannot tie"):
        apply(model, LoraConfig(targets=["c_attn"], modules_to_save=["wte"]))


def test_describe_counts_trainable_and_all() -> None:
    model = make()
    total = sum(p.numel() for p in model.parameters())
    assert count_parameters(model) == (total, total)
    adapted = apply(model, LoraConfig(rank=4, targets=["q_proj"]))
    added = 2 * 4 * (32 + 32)
    assert count_parameters(adapted) == (added, total + added)


@pytest.mark.slow
def test_adapters_on_a_base_that_zero3_has_partitioned(run_ranks: Callable[..., Any]) -> None:
    finished = run_ranks(Path(__file__).parent / "lora_on_zero3.py")
    for mode in ("lora", "dora", "tied", "untied", "experts", "only experts"):
        assert finished.output.count(f"{mode} passed") >= 2, mode


def test_a_head_of_several_layers_is_trained_and_saved_whole() -> None:
    from transformers import RobertaConfig, RobertaForSequenceClassification

    from peft import get_peft_model_state_dict

    config = RobertaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1)
    config.num_attention_heads = 2
    model = RobertaForSequenceClassification(config)
    fresh = ["classifier.dense", "classifier.out_proj"]
    adapted: Any = apply(model, LoraConfig(rank=2), fresh)
    saved = {name for name in get_peft_model_state_dict(adapted) if "classifier" in name}
    assert {name.removeprefix("base_model.model.") for name in saved} == {
        f"{module}.{kind}" for module in fresh for kind in ("weight", "bias")
    }
