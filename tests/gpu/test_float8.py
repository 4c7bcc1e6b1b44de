"""Products in FP8 by a GPU's kernels, against bf16: loss and gradients of a packed row."""

import copy

import pytest
import torch
import transformers

from launcher.model import attention
from launcher.model.float8 import use_float8
from launcher.model.head import TargetHead
from launcher.model.layers import compile_layers
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


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("lengths", [(100, 1, 300, 47), (100, 1, 300, 50)])
def test_losses_and_gradients_are_near_those_of_bf16(lengths, compiled):
    pytest.importorskip("torchao")
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU does not multiply in FP8")
    attention.register()
    torch.manual_seed(0)
    plain = transformers.AutoModelForCausalLM.from_config(
        transformers.Qwen3Config(**SIZES),
        attn_implementation=attention.VARLEN,
        dtype=torch.bfloat16,
    ).to("cuda")
    plain.train()
    model = copy.deepcopy(plain)
    assert use_float8(model) == 14
    if compiled:
        compile_layers(model)
    row = make_row(lengths, 512).to("cuda")
    expected = TargetHead(plain).loss(plain, row)
    expected.backward()
    found = TargetHead(model).loss(model, row)
    found.backward()
    torch.testing.assert_close(found, expected, rtol=0.03, atol=0)
    wanted = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        other = wanted[name].grad.float()
        assert (parameter.grad.float() - other).norm() <= 0.25 * other.norm(), name
