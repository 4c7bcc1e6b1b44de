"""Weights of records, from the file to the loss."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.schema import Config
from launcher.data.cache import Counts, TokenCache
from launcher.data.pack.loader import make_row
from launcher.data.prepare.preparation import prepare
from support import caches
from support.chats import chat
from support.formats import read

Configure = Callable[..., Config]
MakeData = Callable[..., Path]


def test_weights_scale_loss_and_denominator(
    configure: Configure, make_data: MakeData, tmp_path: Path
) -> None:
    records = [chat("a", "b"), chat("c", "d e f", weight=2.5), chat("g", "h", weight=0)]
    cache = TokenCache.open(str(prepare(configure(train=make_data(records)))["train"]))
    assert cache.index.counts == Counts(read=3, dropped=1)
    assert [cache.weight(i) for i in range(2)] == [1.0, 2.5]
    row = make_row(cache, [1, 0])
    assert row.weights is not None
    counts = [int(cache.record(i)[1][1:].sum()) for i in (1, 0)]
    assert row.weights.tolist() == [2.5] * counts[0] + [1.0] * counts[1]
    from launcher.config.schema import SftConfig
    from launcher.objectives.sft import Sft

    assert Sft(SftConfig()).weight(row) == 2.5 * counts[0] + counts[1]
    plain = TokenCache.open(
        str(prepare(configure(train=make_data([chat("a", "b", weight=1)], "plain.jsonl")))["train"])
    )
    assert plain.weights is None
    assert make_row(plain, [0]).weights is None


@pytest.mark.parametrize("weight", [-1, "much", True, [1], 1e30, float("nan")])
def test_weights_that_are_none(weight: Any) -> None:
    assert (
        "the record has weight"
        in read("prompt", {"prompt": "a", "completion": "b", "weight": weight}).found
    )


@settings(deadline=None)
@given(st.lists(st.floats(0, 4, width=32), min_size=1, max_size=6), st.floats(0, 0.3))
def test_a_weighted_loss_is_that_of_repeated_targets(
    weights: list[float], smoothing: float
) -> None:
    from launcher.model.target_logits import CrossEntropy, LogitsLoss

    torch.manual_seed(0)
    logits = torch.randn(len(weights), 7, requires_grad=True)
    targets = torch.arange(len(weights)) % 7
    scale = torch.tensor(weights)
    total, _ = LogitsLoss.apply(
        logits.clone(), targets, CrossEntropy(targets, smoothing, scale), False
    )
    (got,) = torch.autograd.grad(total, logits)
    each = torch.nn.functional.cross_entropy(
        logits, targets, reduction="none", label_smoothing=smoothing
    )
    expected = (each * scale).sum()
    (wanted,) = torch.autograd.grad(expected, logits)
    assert torch.allclose(total, expected, atol=1e-4)
    assert torch.allclose(got, wanted, atol=1e-5)


def test_weights_survive_a_round_trip(tmp_path: Path) -> None:
    cache = caches.write(tmp_path, [([1, 2], [0, 1])] * 2, weights=[1, 0.5])
    assert [TokenCache.open(tmp_path, verify=True).weight(i) for i in (0, 1)] == [1, 0.5]
    assert cache.weights is not None
