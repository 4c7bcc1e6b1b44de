"""Lean forwards: same values and gradients as the modules' own, fewer bytes kept for backward."""

import copy

import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM

from launcher.model import activations
from launcher.peft import lora
from support.configs import make_config

COMMON = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}
#: Config, options, norms a layer, whether the MLP is lean.
FAMILIES = {
    "llama": ("LlamaConfig", {}, 2, True),
    "llama-biased": ("LlamaConfig", {"attention_bias": True, "mlp_bias": True}, 2, True),
    "qwen3": ("Qwen3Config", {"head_dim": 16}, 4, True),
    "mistral": ("MistralConfig", {"sliding_window": 50}, 2, True),
    "gemma2": ("Gemma2Config", {"head_dim": 16}, 4, True),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 16}, 6, True),
    "smollm3": ("SmolLM3Config", {}, 2, True),
    "phi3": ("Phi3Config", {}, 2, False),
    "olmo2": ("Olmo2Config", {}, 4, True),
}
TOKENS = 48


def make(family, dtype=torch.float32):
    name, options, *_ = FAMILIES[family]
    config = getattr(transformers, name)(**COMMON, **options)
    torch.manual_seed(0)
    attention = "eager" if family == "gemma2" else "sdpa"
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.15)
    return model.to(dtype).train()


def is_lean(module):
    return "forward" in vars(module)


def named(model, ending):
    return [m for m in model.modules() if type(m).__name__.endswith(ending)]


def loss_of(model):
    ids = torch.randint(3, 61, (1, TOKENS), generator=torch.Generator().manual_seed(1))
    return model(input_ids=ids, labels=ids, use_cache=False).loss


def gradients(model):
    model.zero_grad()
    loss = loss_of(model)
    loss.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), found


def kept_bytes(model):
    """Bytes that one forward keeps for its backward, parameters aside."""
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_of(model)
    return sum(storage.nbytes() for storage in kept.values())


def assert_same_training(lean_model, own_model, tolerance):
    loss, found = gradients(lean_model)
    expected_loss, expected = gradients(own_model)
    torch.testing.assert_close(loss, expected_loss, rtol=tolerance, atol=0)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        limit = tolerance * float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=limit, msg=name)


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_as_before(family):
    own, model = make(family), make(family)
    activations.save_less(model)
    assert_same_training(model, own, 1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_norms_of_every_family_and_separate_gates_are_recognised(family):
    *_, norms, has_gates = FAMILIES[family]
    model = make(family)
    changed = activations.save_less(model)
    found = [is_lean(m) for m in named(model, "RMSNorm")]
    assert found == [True] * (2 * norms + 1)
    assert [is_lean(m) for m in named(model, "MLP")] == [has_gates] * 2
    assert changed == sum(map(is_lean, model.modules()))
    assert activations.save_less(model) == 0


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_values_are_rounded_where_the_model_rounds(family, dtype):
    own, model = make(family, dtype), make(family, dtype)
    activations.save_less(model)
    for one, other in zip(own.modules(), model.modules(), strict=True):
        if not is_lean(other) or isinstance(one, nn.Linear):
            continue
        width = one.weight.shape[0] if hasattr(one, "weight") else COMMON["hidden_size"]
        x = torch.randn(TOKENS, width, generator=torch.Generator().manual_seed(2)).to(dtype)
        expected, found = one(x), other(x)
        assert found.dtype == dtype
        assert (found != expected).float().mean() <= 0.01
        torch.testing.assert_close(found, expected, rtol=torch.finfo(dtype).eps, atol=0)


def test_sixteen_bit_gradients_are_no_worse_than_the_models_own():
    exact = gradients(make("llama"))[1]
    own, model = make("llama", torch.bfloat16), make("llama", torch.bfloat16)
    activations.save_less(model)
    errors = []
    for one in (own, model):
        found = gradients(one)[1]
        errors.append(sum(float((found[n].float() - g).square().sum()) for n, g in exact.items()))
    assert errors[1] < 1.1 * errors[0]


# SmolLM3 and the like are Llama here; norms after the layers (Olmo 2, Gemma) feed no linear layer.
@pytest.mark.parametrize(
    ("family", "share"),
    [("llama", 0.58), ("qwen3", 0.58), ("gemma3", 0.55), ("olmo2", 0.65), ("phi3", 0.85)],
)
def test_fewer_bytes_are_kept(family, share):
    model = make(family)
    before = kept_bytes(model)
    activations.save_less(model)
    assert kept_bytes(model) < share * before


# Dropout makes a tensor for each adapter, which no node can make again.
@pytest.mark.parametrize(("dropout", "share"), [(0.0, 0.7), (0.1, 0.95)])
def test_adapters_on_all_linear_layers_train_as_before(dropout, share):
    config = make_config(peft={"name": "lora", "rank": 4, "dropout": dropout}).peft
    torch.manual_seed(3)
    own = lora.apply(make("llama"), config)
    for name, parameter in own.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    model = copy.deepcopy(own)
    activations.save_less(model)
    if not dropout:
        assert_same_training(model, own, 1e-5)
    assert kept_bytes(model) < share * kept_bytes(own)


def test_backward_can_run_twice():
    model = make("llama")
    activations.save_less(model)
    loss = loss_of(model)
    parameters = list(model.parameters())
    once = torch.autograd.grad(loss, parameters, retain_graph=True)
    again = torch.autograd.grad(loss, parameters)
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_gradients_of_some_parameters_alone():
    own, model = make("llama"), make("llama")
    activations.save_less(model)
    for name in ("model.layers.0.mlp.down_proj.weight", "model.layers.1.self_attn.q_proj.weight"):
        found, expected = (
            torch.autograd.grad(loss_of(m), m.get_parameter(name))[0] for m in (model, own)
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_a_deep_copy_computes_with_its_own_parameters():
    model = make("llama")
    activations.save_less(model)
    twin = copy.deepcopy(model)
    nn.init.zeros_(model.model.norm.weight)
    torch.testing.assert_close(loss_of(twin), loss_of(make("llama")), rtol=1e-5, atol=0)


def test_without_gradients_nothing_is_kept_and_values_stay():
    own, model = make("gemma3"), make("gemma3")
    activations.save_less(model)
    with torch.no_grad():
        torch.testing.assert_close(loss_of(model), loss_of(own), rtol=1e-6, atol=0)
        assert kept_bytes(model) == 0


class Norm(nn.Module):
    """An RMS norm with one thing changed."""

    def __init__(self, change):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))
        self.eps = 1e-6
        self.change = change

    def forward(self, x):
        given = x.dtype
        x = x if self.change == "sixteen bit" else x.float()
        eps = 0.0 if self.change == "no epsilon" else self.eps
        centre = x.mean(-1, keepdim=True) if self.change == "centred" else 0.0
        scale = torch.rsqrt((x - centre).pow(2).mean(-1, keepdim=True) + eps)
        if self.change == "constant scale":
            scale = scale.detach()
        return ((x - centre) * scale).to(given) * self.weight


class Mlp(nn.Module):
    """A gated MLP with one thing changed."""

    def __init__(self, change):
        super().__init__()
        self.gate_proj, self.up_proj = nn.Linear(16, 24), nn.Linear(16, 24)
        self.down_proj = nn.Linear(24, 16)
        self.act_fn = nn.Tanh() if change == "tanh" else nn.SiLU()
        if change == "dropout":
            self.dropout = nn.Dropout(0.1)
        self.change = change

    def forward(self, x):
        gate, up = self.gate_proj(x), self.up_proj(x)
        if self.change == "swapped":
            gate, up = up, gate
        if self.change == "capped":
            up = up.clamp(max=1.0)
        if self.change == "own width":
            up = up.view(-1, 24)
        return self.down_proj(self.act_fn(gate) * up)


@pytest.mark.parametrize(
    "module",
    [
        *map(Norm, ("no epsilon", "centred", "constant scale", "sixteen bit")),
        *map(Mlp, ("tanh", "dropout", "swapped", "capped", "own width")),
        nn.LayerNorm(16),
        nn.Embedding(4, 16),
    ],
    ids=lambda m: f"{type(m).__name__} {getattr(m, 'change', '')}",
)
def test_what_computes_something_else_is_left_alone(module):
    activations.save_less(module)
    assert not is_lean(module)


@pytest.mark.parametrize("module", [Norm(""), Mlp("")])
def test_what_computes_the_same_is_taken_whatever_its_name(module):
    activations.save_less(module)
    assert is_lean(module)


def test_a_forward_put_there_by_others_stays():
    model = make("llama")
    other = model.lm_head.forward = model.model.norm.forward = lambda x: x
    activations.save_less(model)
    assert model.lm_head.forward is other
    assert model.model.norm.forward is other


def test_the_proof_uses_neither_the_global_generator_nor_the_parameters():
    model = make("qwen3")
    before = [p.clone() for p in model.parameters()]
    state = torch.random.get_rng_state()
    activations.save_less(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, old)
        assert parameter.grad is None
