"""The seed that each rank draws a step's numbers with."""

import pytest

from launcher.train.loop import _step_seed


@pytest.mark.parametrize("seed", [0, 42, 1234567890, 2**32 - 1])
def test_step_seeds_fit_torch_and_differ(seed):
    import torch

    seeds = {_step_seed(seed, step, rank) for step in (0, 1, 10**6) for rank in (0, 1, 1000)}
    assert len(seeds) == 9
    for value in seeds:
        torch.manual_seed(value)
