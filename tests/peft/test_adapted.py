"""Which layers of each family get adapters, and that each of them learns and merges."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from launcher.config.schema import LoraConfig
from launcher.errors import ConfigError
from launcher.model.merge import Merger
from launcher.peft.lora import apply
from support.adapted import FAMILIES, family

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


@pytest.mark.parametrize("name", FAMILIES)
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
