"""Liger's kernels against the models' own code: loss and gradients of a packed row."""

import copy

import pytest
import torch
import transformers

from launcher.model import attention
from launcher.model.head import TargetHead
from launcher.model.kernels import use_liger
from support import gpu
from support.rows import make_row

pytestmark = gpu.ONLY

SIZES = {
    "vocab_size": 512,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LENGTHS = (100, 1, 300, 47)


@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma2"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("bfloat16", 3e-2)])
def test_losses_and_gradients_are_those_of_the_models_own_code(family, dtype, tolerance):
    pytest.importorskip("liger_kernel")
    attention.register()
    torch.manual_seed(0)
    plain = transformers.AutoModelForCausalLM.from_config(
        getattr(transformers, f"{family}Config")(**SIZES),
        attn_implementation=attention.VARLEN,
        dtype=getattr(torch, dtype),
    ).to("cuda")
    fused = copy.deepcopy(plain)
    row = make_row(LENGTHS, 512).to("cuda")
    expected = TargetHead(plain).loss(plain, row)
    expected.backward()  # before Liger replaces the rotary positions of the class
    assert use_liger(fused)
    found = TargetHead(fused).loss(fused, row)
    found.backward()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=0)
    wanted = dict(plain.named_parameters())
    for name, parameter in fused.named_parameters():
        other = wanted[name].grad.float()
        assert (parameter.grad.float() - other).norm() <= tolerance * other.norm(), name
