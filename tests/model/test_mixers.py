"""Which dimensions of a layer's tensors count tokens, also where a width is of the same size."""

import pytest
import torch

from launcher.model.mixers import part


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 8, 5), (1, 3, 5)),
        ((1, 8, 8), (1, 3, 8)),
        ((8, 5), (3, 5)),
        ((1, 4, 8, 5), (1, 4, 3, 5)),
        ((1, 4, 8, 8), (1, 4, 3, 8)),  # queries of heads that are as wide as the row is long
        ((1, 8, 8, 8), (1, 3, 8, 8)),
        ((4, 5), (4, 5)),
    ],
)
def test_a_part_has_the_tokens_asked_for_and_whole_vectors(shape, expected):
    assert part(torch.zeros(shape), 8, 2, 5).shape == expected


def test_a_mask_is_cut_on_both_sides():
    square = torch.arange(64.0).view(1, 1, 8, 8)
    wanted = square[:, :, 2:5, 2:5]
    cut = part(((square > 3,), {"attention_mask": square, "value": square}), 8, 2, 5)
    assert torch.equal(cut[0][0], wanted > 3)
    assert torch.equal(cut[1]["attention_mask"], wanted)
    assert torch.equal(cut[1]["value"], square[:, :, 2:5])
