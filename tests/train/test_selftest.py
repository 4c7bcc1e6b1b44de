"""The start-up check passes attention that isolates and refuses layers that carry state."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from launcher.data import cache as caches
from launcher.errors import ConfigError
from launcher.model import attention
from launcher.model.head import TargetHead
from launcher.train.engine import Piece
from launcher.train.selftest import check_isolation, silent_adapters
from support.models import make_llama


class Leaking(torch.nn.Module):
    """Adds the mean of all earlier hidden states to each: what a recurrent layer does."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, hidden, *args, **kwargs):
        counts = torch.arange(1, hidden.shape[1] + 1).view(1, -1, 1)
        return self.layer(hidden + 20 * hidden.cumsum(1) / counts, *args, **kwargs)


@pytest.fixture
def model(tmp_path):
    attention.register()
    folder = make_llama(tmp_path / "model")
    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention.DOCUMENT)


@pytest.fixture
def cache(tmp_path):
    records = [([7, 9, 30, 41, 55, 8], [0, 0, 1, 1, 1, 1]), ([70, 91, 33, 4], [0, 1, 1, 1])]
    return caches.write(tmp_path / "cache", records, max_length=64)


def test_isolating_model_passes(model, cache):
    check_isolation(TargetHead(model, "document"), model, cache, torch.device("cpu"))


def test_layers_that_carry_state_are_refused(model, cache):
    torch.nn.init.normal_(model.lm_head.weight)
    model.model.layers[0] = Leaking(model.model.layers[0])
    with pytest.raises(ConfigError, match="see each other"):
        check_isolation(TargetHead(model, "document"), model, cache, torch.device("cpu"))


def test_an_adapter_that_the_first_step_left_at_zero_is_named():
    flat = torch.tensor([1.0, 2.0, 0.0, 0.0, 0.0, -1e-9])

    def piece(name, start, size):
        return Piece(name, (size,), 0, size, flat, start)

    pieces = [
        piece("layers.0.q_proj.lora_A.default.weight", 0, 2),
        piece("layers.0.q_proj.lora_B.default.weight", 2, 2),
        piece("layers.0.v_proj.lora_B.default.weight", 4, 1),
        piece("layers.0.v_proj.lora_B.default.weight", 5, 1),
    ]
    assert silent_adapters(pieces) == ["layers.0.q_proj"]
    assert silent_adapters(pieces[2:]) == []
