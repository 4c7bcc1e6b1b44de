"""What an engine refuses before it trains; without ranks."""

import os

import pytest
import torch

from launcher.core import runtime
from launcher.core.errors import ConfigError
from launcher.train import zero


@pytest.mark.parametrize("numel", [2**31 - 1, 2**31])
def test_more_elements_than_bitsandbytes_counts_are_refused(numel):
    flats = [torch.empty(10, device="meta"), torch.empty(numel, device="meta")]
    if numel < 2**31:
        zero._require_countable(flats)
        return
    with pytest.raises(ConfigError, match=r"2,147,483,648 parameters at once(?s:.)*engine=zero3"):
        zero._require_countable(flats)


def test_the_gpu_of_a_rank_that_sees_one_alone_is_the_first(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "3")
    runtime.name_device(0)
    assert os.environ["LOCAL_RANK"] == "0"
