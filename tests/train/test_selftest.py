"""Adapters that no gradient reaches are named after the first step."""

import torch

from launcher.train.engine import Piece
from launcher.train.selftest import silent_adapters


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
