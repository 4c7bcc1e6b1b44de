"""What is said of routers, and which models have a loss that balances their experts."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import AutoModelForCausalLM

from launcher.core.errors import ConfigError
from launcher.train.routing import RouterLoad, Routing
from support.adapted import family


def routing(name: str, coefficient: float | None = None, **changes: object) -> Routing:
    config = family(name)
    for key, value in changes.items():
        setattr(config, key, value)
    return Routing(AutoModelForCausalLM.from_config(config), coefficient, 1)


def load(*shares: list[float], choices: float = 100) -> RouterLoad:
    names = [f"layer {i}" for i in range(len(shares))]
    return RouterLoad(names, list(shares), 1.0, 2.0, choices)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_the_coefficient_is_the_models_own_where_its_config_asks_for_it(name: str) -> None:
    assert not routing(name).learns
    own = routing(name, output_router_logits=True, router_aux_loss_coef=0.25)
    assert own.coefficient == 0.25
    assert routing(name, 0.5, output_router_logits=True).coefficient == 0.5
    assert not routing(name, 0.0, output_router_logits=True).learns


def test_a_coefficient_without_a_loss_is_refused() -> None:
    with pytest.raises(ConfigError, match="which has no experts") as caught:
        routing("llama", 0.1)
    assert caught.value.problems[0].where == "train.router_aux"
    assert not routing("llama").watches
    for name in ("glm4_moe", "deepseek_v3"):
        with pytest.raises(ConfigError, match="transformers has no such loss"):
            routing(name, 0.1)
        found = routing(name, output_router_logits=True)
        assert found.watches
        assert not found.learns


def test_use_of_experts_is_that_of_the_worst_router() -> None:
    found = load([0.25] * 4, [0.5, 0.5, 0.0, 0.0])
    assert found.uses == pytest.approx([1.0, 0.5])
    assert found.use == pytest.approx(0.5)
    assert found.unused == 2 / 8
    assert not load([0.25] * 4).complaint
    one = load([0.25] * 4, [0.9, 0.1, 0.0, 0.0])
    assert one.use == pytest.approx(math.exp(-0.9 * math.log(0.9) - 0.1 * math.log(0.1)) / 4)
    assert "layer 1" in one.complaint
    assert "90% of the choices fall on one of 4" in one.complaint
    assert not load([0.9, 0.1, 0.0, 0.0], choices=3).complaint


def test_padding_is_not_counted() -> None:
    found = routing("mixtral")
    found.attach()
    model = found._inner
    ids, mask = torch.arange(12).reshape(2, 6), torch.ones(2, 6, dtype=torch.long)
    mask[1, 2:] = 0

    def counted(run) -> list[list[float]]:
        found.begin()
        with found.row():
            run()
        got = found.load()
        assert got is not None
        return [[share * got.choices * 4 for share in row] for row in got.shares]

    def apart() -> None:
        model(input_ids=ids[:1])
        found._seen.clear()
        model(input_ids=ids[1:, :2])

    padded = counted(lambda: model(input_ids=ids, attention_mask=mask))
    assert [sum(row) for row in padded] == pytest.approx([16, 16])
    for one, other in zip(padded, counted(apart), strict=True):
        assert one == pytest.approx(other)
