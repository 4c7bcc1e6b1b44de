"""Which layers of each family get adapters, and that each of them learns and merges."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import peft
from launcher.config.schema import Config, LoraConfig
from launcher.core.errors import ConfigError
from launcher.model.adapter import AdapterReader
from launcher.model.export import Kind, Trained, export
from launcher.model.merge import Merger
from launcher.model.rebuild import load_base, with_adapters
from launcher.model.verify import verify
from launcher.peft.lora import apply
from support.adapted import FAMILIES, family
from support.draws import some
from support.families import make_family, small_config
from support.family_checks import checkpoint, move

#: Linear layers whose weight a fused kernel takes past any adapter.
LEFT_OUT = {
    "falcon_h1": {"mamba.out_proj"},
    "granitemoehybrid": {"mamba.out_proj"},
    "mamba": {"mixer.x_proj", "mixer.dt_proj", "mixer.out_proj"},
}


def make(name: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config = family(name)
    for key, value in changes.items():
        setattr(config, key, value)
    return AutoModelForCausalLM.from_config(config)


def adapted(model: Any) -> set[str]:
    """Names of adapted modules, and of the parameters of experts as those of their module."""
    return {
        name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def short(names: set[str]) -> set[str]:
    return {".".join(name.split(".")[-2:]) for name in names}


@pytest.mark.thorough
@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_layer_but_the_head_learns(name: str) -> None:
    plain = make(name)
    linear = {n for n, m in plain.named_modules() if type(m) is torch.nn.Linear} - {"lm_head"}
    fused = {n.rpartition(".")[0] for n, p in plain.named_parameters() if ".experts." in n}
    model = apply(plain, LoraConfig(rank=2))
    left = short(linear - adapted(model))
    assert left == LEFT_OUT.get(name, set())
    assert bool(model.left_out) is bool(left)
    assert all(end in model.left_out for end in left)
    assert fused <= adapted(model)
    assert not short(adapted(model)) & {"mlp.router", "mlp.gate"}
    model(
        input_ids=torch.randint(0, 300, (2, 24)), labels=torch.randint(0, 300, (2, 24))
    ).loss.backward()
    silent = [
        n
        for n, p in model.named_parameters()
        if ".lora_B." in n and (p.grad is None or not p.grad.any())
    ]
    assert not silent


@pytest.mark.parametrize("name", some(FAMILIES, "llama", "qwen3_moe"))
def test_merging_one_tensor_at_a_time_is_what_peft_does(name: str) -> None:
    plain = make(name)
    before = {n: p.detach().clone() for n, p in plain.named_parameters()}
    model = apply(plain, LoraConfig(rank=2, alpha=3.0))
    trained = {}
    for n, parameter in model.named_parameters():
        if parameter.requires_grad:
            trained[n] = torch.nn.init.normal_(parameter.data, std=0.1).clone()
    merger = Merger.of(model, trained, torch.float32)  # type: ignore[arg-type]  # it reads keys
    if name == "gpt2":  # its matrices lie transposed: peft itself folds them
        assert merger is None
        return
    assert merger is not None
    expected = dict(model.merge_and_unload().named_parameters())
    changed = 0
    for n, base in before.items():
        found = merger.merge(n, base.clone(), trained.__getitem__)
        torch.testing.assert_close(found, expected[n].detach(), atol=1e-5, rtol=1e-5)
        changed += not torch.equal(found, base)
    assert changed * 2 == len(trained)


def test_experts_are_an_option_and_routers_are_asked_for_by_name() -> None:
    model = apply(make("glm4_moe"), LoraConfig(rank=2, experts=False))
    assert not any(n.endswith((".experts", ".base_layer")) for n in adapted(model))
    model = apply(make("glm4_moe"), LoraConfig(rank=2, targets=["q_proj", "gate"]))
    assert short(adapted(model)) == {"self_attn.q_proj", "mlp.gate"}
    model = apply(make("gpt_oss"), LoraConfig(rank=2, targets=["all-linear", "router"]))
    assert {"mlp.router", "mlp.experts"} <= short(adapted(model))
    model = apply(make("mixtral"), LoraConfig(rank=2, targets=["gate_up_proj"]))
    assert short(adapted(model)) == {"mlp.experts"}


@pytest.mark.parametrize(("key", "value"), [("dora", True), ("dropout", 0.1)])
def test_what_peft_cannot_do_to_a_parameter_is_refused_with_a_way_out(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=r"experts\.down_proj") as caught:
        apply(make("glm4_moe"), LoraConfig(rank=2, **{key: value}))
    (problem,) = caught.value.problems
    assert problem.where == f"peft.{key}"
    targets = problem.hint.rpartition("[")[2].rstrip("]").split(",")
    model = apply(make("glm4_moe"), LoraConfig(rank=2, targets=targets, **{key: value}))
    assert short(adapted(model)) >= {"self_attn.q_proj", "self_attn.o_proj"}


@pytest.mark.parametrize(("name", "target"), [("falcon_h1", "out_proj"), ("mamba", "dt_proj")])
def test_a_layer_past_which_the_model_reads_is_refused_by_name(name: str, target: str) -> None:
    with pytest.raises(ConfigError, match="reads the weight") as caught:
        apply(make(name), LoraConfig(targets=[target]))
    assert caught.value.problems[0].where == "peft.targets"


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
def test_adapters_on_one_of_two_tied_embeddings_are_refused(target: str) -> None:
    with pytest.raises(ConfigError, match="tied") as caught:
        apply(make("llama"), LoraConfig(targets=["q_proj", target]))
    assert "modules_to_save=[embed_tokens]" in caught.value.problems[0].hint
    apply(make("llama", tie_word_embeddings=False), LoraConfig(targets=["q_proj", target]))


def test_the_tied_embedding_of_gpt2_is_refused_too() -> None:
    with pytest.raises(ConfigError, match="tied"):
        apply(make("gpt2"), LoraConfig(targets=["c_attn", "wte"]))


def small(name: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(small_config(name)).eval()


def test_layers_that_share_a_matrix_share_an_adapter_which_is_merged_once() -> None:
    model = apply(small("zamba"), LoraConfig(rank=2)).eval()
    first, second = (model.base_model.model.model.layers[i].shared_transf for i in (1, 3))
    assert first.self_attn.q_proj.weight is second.self_attn.q_proj.weight
    assert first.self_attn.q_proj.lora_A is second.self_attn.q_proj.lora_A
    move(model)
    tokens = torch.arange(7, 40)[None]
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
        merged = model.merge_and_unload()(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-4)


def test_adapters_that_differ_where_layers_share_a_matrix_are_refused(tmp_path: Path) -> None:
    model = peft.get_peft_model(small("zamba"), peft.LoraConfig(r=2, target_modules=["q_proj"]))
    move(model)  # peft itself lets each layer learn another one
    model.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="shares its matrix"):
        AdapterReader(tmp_path, apply(small("zamba"), LoraConfig(adapter=str(tmp_path))))


def test_an_adapter_opens_under_its_names_though_transformers_renames_some(tmp_path: Path) -> None:
    base = make_family("laguna", tmp_path / "base")
    config = Config(peft=LoraConfig(rank=2))
    config.model.name = str(base)
    model = with_adapters(load_base(config.model, base, torch.float32, 0), config).eval()
    move(model)
    assert any(".shared_experts." in name for name in model.file_names)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    weights = checkpoint(model, tmp_path / "weights.safetensors")
    trained, out = Trained(config, weights, tokenizer, torch.float32), tmp_path / "adapter"
    export(trained, Kind.adapter, out, lambda folder: verify(trained, folder))
    tokens = torch.arange(7, 40)[None]
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    plain.load_adapter(str(out))  # transformers' own way, beside peft's, which `verify` takes
    with torch.no_grad():
        expected = model(input_ids=tokens, use_cache=False).logits
        found = plain(input_ids=tokens, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_layer_whose_adapter_would_open_as_another_is_left_out() -> None:
    model = apply(small("inkling2_text"), LoraConfig(rank=2))
    assert "weight_proj" in model.left_out
    assert not any("weight_proj" in name for name in adapted(model))
    with pytest.raises(ConfigError, match="another name") as caught:
        apply(small("inkling2_text"), LoraConfig(targets=["q_proj", "weight_proj"]))
    assert caught.value.problems[0].where == "peft.targets"
