"""Products by oneDNN: what torch's own give, and copies of weights that leave no trace."""

import copy
import functools

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig

from launcher.model import activations, products
from launcher.model.head import TargetHead


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(7, 24), (1, 24), (24,), (2, 3, 24), (0, 24), (2, 0, 24)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_linear_layer_is_that_of_torch(shape, biased):
    x, weight = numbers(*shape), numbers(40, 24, seed=1)
    bias = numbers(40, seed=2) if biased else None
    found = products.linear(x, weight, bias)
    torch.testing.assert_close(found, functional.linear(x, weight, bias))


def test_products_of_matrices_in_any_order_of_memory():
    a, b = numbers(30, 16), numbers(16, 20, seed=1)
    out = torch.empty(3, 30, 20)[1]
    for left in (a, a.t().contiguous().t(), numbers(30, 32)[:, ::2]):
        for right in (b, b.t().contiguous().t()):
            torch.testing.assert_close(products.product(left, right), left @ right)
            products.write(out, left, right)
            torch.testing.assert_close(out, left @ right)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_are_left_to_torch(dtype):
    x, weight = numbers(5, 24).to(dtype), numbers(8, 24, seed=1).to(dtype)
    assert torch.equal(products.linear(x, weight), functional.linear(x, weight))
    assert torch.equal(products.product(x, weight.t()), x @ weight.t())


@pytest.mark.skipif(not products.is_fast(numbers(1, 1), numbers(1, 1)), reason="needs oneDNN")
def test_a_row_is_the_same_among_any_others():
    x, weight = numbers(300, 256), numbers(688, 256, seed=1)
    of_all = products.linear(x, weight)
    layer = nn.Linear(256, 688, bias=False)
    layer.weight.data = weight
    with torch.no_grad(), products.laid_out(nn.Sequential(layer), products.MOST_BYTES):
        for count in (3, 8, 31, 64):
            assert torch.equal(products.linear(x[:count], weight), of_all[:count])
            assert torch.equal(layer(x[:count]), of_all[:count])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24, bias=False)
        self.embed_tokens, self.lm_head = nn.Embedding(9, 24), nn.Linear(24, 9, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, x):
        return self.lm_head(self.second(self.first(x)))


def forwards(model):
    return [vars(own).get("forward") for own in model.modules()]


@pytest.mark.parametrize("lean", [False, True])
@torch.no_grad()
def test_laid_out_layers_compute_the_same_and_are_as_they_were(lean):
    model = Model()
    if lean:
        activations.save_less(model)
    before, x = forwards(model), numbers(6, 24)
    expected = model(x)
    with products.laid_out(model, products.MOST_BYTES):
        inside = forwards(model)
        torch.testing.assert_close(model(x), expected)
    assert forwards(model) == before
    changed = [one is not other for one, other in zip(inside, before, strict=True)]
    assert changed == [False, True, True, False, True]
    model.first.weight.mul_(2)
    assert not torch.allclose(model(x), expected)


@torch.no_grad()
def test_layers_that_compute_in_their_own_way_stay():
    model = Model()
    model.first.forward = lambda x: x
    model.second.weight.data = torch.empty(0)  # as ZeRO-3 leaves it
    before = forwards(model)
    with products.laid_out(model, products.MOST_BYTES):
        assert [a is b for a, b in zip(forwards(model), before, strict=True)] == [
            *(True, True, True, True, False)
        ]
    with products.laid_out(model, 9 * 24 * 4 - 1):
        assert forwards(model) == before
    with (
        products.laid_out(Model().double(), products.MOST_BYTES) as _,
        products.laid_out(model.double(), products.MOST_BYTES),
    ):
        assert forwards(model) == before


@torch.no_grad()
def test_a_wrapper_of_a_lean_forward_is_kept():
    model = Model()
    activations.save_less(model)
    inner = model.first.forward
    model.first.forward = functools.wraps(inner)(lambda x: 2 * inner(x))
    x = numbers(6, 24)
    expected = model.first(x)
    with products.laid_out(model, products.MOST_BYTES):
        torch.testing.assert_close(model.first(x), expected)


def test_what_onednn_would_misread_or_refuse():
    x, weight = numbers(5, 24), numbers(40, 24, seed=1)
    bias = numbers(80, seed=2)[::2]
    torch.testing.assert_close(products.linear(x, weight, bias), x @ weight.t() + bias)
    assert products.linear(numbers(5, 0), numbers(40, 0)).tolist() == [[0.0] * 40] * 5
    assert products.linear(x, numbers(0, 24)).shape == (5, 0)
    with torch.autocast("cpu", torch.bfloat16):
        assert products.linear(x, weight).dtype == torch.bfloat16


@torch.no_grad()
def test_a_head_that_reads_targets_is_laid_out_too():
    config = LlamaConfig(
        vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    assert TargetHead(model).head is model.lm_head
    ids, before = torch.arange(9)[None], forwards(model)
    expected = model(ids).logits
    with products.laid_out(model, products.MOST_BYTES):
        assert forwards(model)[-1] is not before[-1]
        torch.testing.assert_close(model(ids).logits, expected)
    assert forwards(model) == before


@pytest.mark.parametrize("learns", [True, False])
def test_a_linear_layer_that_nothing_remakes_has_the_gradients_of_its_own(learns):
    lean = Model()
    lean.second.weight.requires_grad_(learns)
    plain = copy.deepcopy(lean)
    assert activations.save_less(lean) == 3
    x = numbers(2, 6, 24)
    found = []
    for model in (lean, plain):
        own = x.clone().requires_grad_()
        model(own).square().sum().backward()
        found.append([own.grad, *(p.grad for p in model.parameters())])
    assert (found[0][3] is None) is not learns
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
