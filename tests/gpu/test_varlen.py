"""Varlen attention on packed rows against one SDPA call a document: values and gradients."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from launcher.model import attention
from launcher.model.head import TargetHead
from support import gpu
from support.rows import make_row

pytestmark = gpu.ONLY

LENGTHS = (1, 7, 300, 64, 129, 523)
#: bf16 keeps 8 bits: both kernels are off by so much, and may be off by this factor of each other.
FACTOR, FLOOR = 3.0, 4e-3


class Operators(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


def starts_of(lengths):
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0)], dtype=torch.int32, device="cuda")


def make_inputs(heads, kv_heads, size):
    """Query, key, value as models make them: [1, heads, tokens, size], transposed views."""
    generator = torch.Generator("cuda").manual_seed(0)
    options = {"generator": generator, "device": "cuda", "dtype": torch.bfloat16}
    return [
        torch.randn(1, sum(LENGTHS), n, size, **options).transpose(1, 2)
        for n in (heads, kv_heads, kv_heads)
    ]


def attend(function, inputs, upstream, window, lengths=LENGTHS):
    """Output and the gradients of query, key and value, in fp32."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out, _ = function(
        torch.nn.Identity(),
        *leaves,
        None,
        sliding_window=window,
        cu_seq_lens_q=starts_of(lengths),
        max_length_q=max(lengths),
    )
    out.backward(upstream.to(out.dtype))
    return [out.detach().float(), *(x.grad.float() for x in leaves)]


@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 8), (8, 2)])
@pytest.mark.parametrize("size", [64, 128])
def test_varlen_is_as_exact_as_one_call_a_document(size, heads, kv_heads, window):
    inputs = make_inputs(heads, kv_heads, size)
    upstream = torch.randn(1, sum(LENGTHS), heads, size, device="cuda")
    exact = attend(attention.document_attention, [x.float() for x in inputs], upstream, window)
    plain = attend(attention.document_attention, inputs, upstream, window)
    with Operators() as operators:
        packed = attend(attention.varlen_attention, inputs, upstream, window)
    assert any("_varlen_attn" in name for name in operators.names), operators.names
    named = zip(("output", "query", "key", "value"), exact, plain, packed, strict=True)
    for name, wanted, reference, got in named:
        assert got.shape == wanted.shape
        allowed = FACTOR * (reference - wanted).abs().max() + FLOOR * wanted.abs().max()
        error = (got - wanted).abs().max()
        assert error <= allowed, f"{name}: off by {error:.2e}, allowed {allowed:.2e}"


@pytest.mark.parametrize("window", [None, 100])
def test_a_document_is_blind_to_its_neighbours(window):
    inputs = make_inputs(8, 2, 64)
    begin, end = LENGTHS[0] + LENGTHS[1], sum(LENGTHS[:3])
    mine = torch.zeros(1, sum(LENGTHS), 8, 64, device="cuda")
    mine[:, begin:end] = 1.0
    before, *gradients = attend(attention.varlen_attention, inputs, mine, window)
    for gradient in gradients:
        assert gradient[:, :, begin:end].any()
        gradient[:, :, begin:end] = 0
        assert not gradient.any()
    changed = [x.clone() for x in inputs]
    for x in changed:
        x[:, :, :begin] = 5.0
        x[:, :, end:] = -5.0
    after, *_ = attend(attention.varlen_attention, changed, mine, window)
    assert torch.equal(before[:, begin:end], after[:, begin:end])


MODELS = {
    "llama": ("LlamaConfig", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 64}),
    "mistral-window": ("MistralConfig", {"sliding_window": 50}),
}


def make_model(family, implementation, dtype):
    import transformers

    name, options = MODELS[family]
    config = getattr(transformers, name)(
        vocab_size=500,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        **options,
    )
    attention.register()
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation=implementation, dtype=torch.bfloat16
    )
    # The fp32 model has the same weights: those that bf16 can hold.
    return model.to("cuda", dtype)


def loss_and_gradients(family, kind, dtype):
    model = make_model(family, attention.IMPLEMENTATIONS[kind], dtype)
    row = make_row(LENGTHS, 500, seed=1, learns=lambda i: i % 3 != 0).to("cuda")
    loss = TargetHead(model).loss(model, row) / len(row.targets)
    loss.backward()
    return loss.detach(), {name: p.grad.float() for name, p in model.named_parameters()}


@pytest.mark.parametrize("family", MODELS)
def test_models_learn_the_same_with_varlen(family):
    exact, wanted = loss_and_gradients(family, "document", torch.float32)
    plain, reference = loss_and_gradients(family, "document", torch.bfloat16)
    packed, got = loss_and_gradients(family, "varlen", torch.bfloat16)
    torch.testing.assert_close(plain, exact, rtol=1e-2, atol=0)
    torch.testing.assert_close(packed, exact, rtol=1e-2, atol=0)
    for name, gradient in wanted.items():
        size = gradient.norm()
        allowed = FACTOR * (reference[name] - gradient).norm() / size + 1e-2
        error = (got[name] - gradient).norm() / size
        assert error <= allowed, f"{name}: off by {error:.2e}, allowed {allowed:.2e}"
