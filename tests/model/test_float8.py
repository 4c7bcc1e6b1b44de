"""Matrix products in FP8: which layers compute so, what stays as it was, and what is refused.

A CPU multiplies in FP8 too, only slowly; the kernels of GPUs are compared in
tests/gpu/test_float8.py.
"""

import copy
import functools
import importlib.util
import sys

import pytest
import torch
import transformers

from launcher.core.errors import ConfigError
from launcher.model import activations
from launcher.model.float8 import use_float8
from launcher.model.layers import compile_layers

IS_THERE = importlib.util.find_spec("torchao") is not None
needs_torchao = pytest.mark.skipif(not IS_THERE, reason="needs torchao: pip install it")

SIZES = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
#: No multiple of 16.
TOKENS = 45


def make(config="LlamaConfig", **options):
    torch.manual_seed(0)
    made = getattr(transformers, config)(**{**SIZES, **options})
    model = transformers.AutoModelForCausalLM.from_config(made, dtype=torch.bfloat16)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.1)
    return model.train()


def loss_of(model):
    ids = torch.randint(3, 61, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def gradients(model):
    loss = loss_of(model)
    loss.backward()
    return loss.detach(), {name: p.grad.float() for name, p in model.named_parameters()}


def changed(model):
    return {name for name, module in model.named_modules() if "float8_twin" in vars(module)}


@needs_torchao
def test_linear_layers_of_the_decoder_train_in_fp8_and_nothing_else_changes():
    plain = make()
    model = copy.deepcopy(plain)
    count = use_float8(model)
    found = changed(model)
    assert count == len(found) == 2 * 7
    assert all(name.startswith("model.layers.") for name in found)
    assert list(model.state_dict()) == list(plain.state_dict())
    loss, found = gradients(model)
    wanted, expected = gradients(plain)
    assert loss != wanted
    torch.testing.assert_close(loss, wanted, rtol=0.03, atol=0)
    for name, gradient in found.items():
        assert model.get_parameter(name).grad.dtype == torch.bfloat16
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error < 0.25, name
    model.eval(), plain.eval()
    assert torch.equal(loss_of(model), loss_of(plain))


@needs_torchao
def test_layers_that_do_not_fit_are_left_alone():
    assert changed_of(intermediate_size=168) == {"q_proj", "k_proj", "v_proj", "o_proj"}
    frozen = make()
    frozen.model.layers.requires_grad_(False)
    frozen.model.layers[1].mlp.requires_grad_(True)
    assert use_float8(frozen) == 3
    mixture = make("Qwen2MoeConfig", num_experts=16, moe_intermediate_size=32)
    mixture.model.layers[0].mlp.gate = torch.nn.Linear(64, 16, bias=False)
    use_float8(mixture)
    assert not any(name.endswith(".gate") for name in changed(mixture))


def changed_of(**options):
    model = make(**options)
    use_float8(model)
    return {name.rpartition(".")[2] for name in changed(model)}


@needs_torchao
def test_a_copy_and_a_move_compute_with_their_own_parameters():
    model = make()
    use_float8(model)
    other = copy.deepcopy(model).to(torch.float64).to(torch.bfloat16)
    before = loss_of(other).detach()
    for one in (model, other):
        assert torch.equal(loss_of(other).detach(), before)
        with torch.no_grad():
            for name in changed(one):
                one.get_submodule(name).weight.zero_()
    assert loss_of(other).detach() != before


@needs_torchao
def test_it_goes_with_lean_activations_in_either_order():
    results = []
    for order in ((), (activations.save_less, use_float8), (use_float8, activations.save_less)):
        model = make()
        for change in order or (use_float8,):
            change(model)
        results.append(gradients(model))
    (wanted, expected), (loss, found), other = results
    assert torch.equal(loss, other[0])
    torch.testing.assert_close(loss, wanted, rtol=1e-2, atol=0)
    for name, gradient in found.items():
        assert torch.equal(gradient, other[1][name]), name
        error = (gradient - expected[name]).norm() / expected[name].norm()
        assert error < 0.25, name  # a bit of bf16 is a step of FP8


@needs_torchao
def test_it_goes_with_activations_that_are_computed_again():
    model = make()
    use_float8(model)
    wanted, expected = gradients(model)
    model.zero_grad()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    loss, found = gradients(model)
    assert torch.equal(loss, wanted)
    for name, gradient in found.items():
        assert torch.equal(gradient, expected[name]), name


@needs_torchao
def test_it_goes_with_compiled_layers(monkeypatch):
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    model = make()
    use_float8(model)
    wanted, _ = gradients(copy.deepcopy(model))
    compile_layers(model)
    loss, _ = gradients(model)
    torch.testing.assert_close(loss, wanted, rtol=1e-2, atol=0)
    model.eval()
    assert torch.equal(loss_of(model), loss_of(make().eval()))


@needs_torchao
def test_a_model_without_such_layers_is_refused():
    model = make(hidden_size=24, intermediate_size=40, num_attention_heads=2)
    with pytest.raises(ConfigError, match="no layer of LlamaForCausalLM(?s:.)*model.fp8=false"):
        use_float8(model)


def test_a_torchao_that_does_not_fit_is_refused_by_name(monkeypatch, tmp_path):
    """Such a one lacks the function, as those of before 2024 do, or cannot be imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchao"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(
        ConfigError, match=r"does not fit torch 2(?s:.)*--upgrade torchao, or model"
    ):
        use_float8(make())
