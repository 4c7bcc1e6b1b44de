"""The engine of one rank: what it holds, in which format, and what a step makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from launcher.config.derive import plan
from launcher.model.load import load_model
from launcher.peft.lora import apply
from launcher.train.single import SingleEngine
from support.configs import make_config

IDS = torch.arange(20, 40).unsqueeze(0)


def make(folder: Path, precision: str, *, lora: bool = False) -> SingleEngine:
    config = make_config(
        model={"name": str(folder), "attention": "sdpa"},
        data={"max_length": 64},
        batch={"sequences": 2, "micro": 1},
        train={"steps": 3},
        engine={"precision": precision},
        optim={"name": "adamw", "lr": 1e-2, "clip_norm": 0.5},
        peft={"name": "lora", "rank": 4} if lora else {"name": "none"},
    )
    made = plan.make(config, world_size=1, has_gpu=False)
    assert made.zero is None
    torch.manual_seed(0)
    model: Any = load_model(config.model, made, 0)
    return SingleEngine(apply(model, config.peft) if lora else model, config, made)


def backward(engine: SingleEngine, factor: float = 1.0) -> None:
    engine.backward(engine(input_ids=IDS, labels=IDS).loss * factor)


@pytest.mark.parametrize("lora", [False, True])
def test_bf16_is_computed_and_fp32_is_kept(tiny_llama: Path, lora: bool) -> None:
    engine = make(tiny_llama, "bf16", lora=lora)
    assert {p.dtype for p in engine.module.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in engine.module.buffers() if b.is_floating_point()} == {torch.float32}
    assert {m.dtype for m in engine.flat_parameters()} == {torch.float32}
    before = [m.clone() for m in engine.flat_parameters()]
    backward(engine)
    assert all(p.grad is None for p in engine.module.parameters())
    assert engine.step(1.0).applied
    assert any(not torch.equal(a, b) for a, b in zip(before, engine.flat_parameters(), strict=True))
    for piece in engine.pieces():
        weight = engine.module.get_parameter(piece.name)
        assert torch.equal(weight, piece.of(piece.flat).view(piece.shape).bfloat16())


def test_gradients_of_micro_batches_are_summed_in_fp32(tiny_llama: Path) -> None:
    engine = make(tiny_llama, "bf16")
    for _ in range(3):
        backward(engine)
    summed = [m.grad.clone() for m in engine.flat_parameters() if m.grad is not None]
    engine.base_optimizer.zero_grad()
    backward(engine)
    for three, m in zip(summed, engine.flat_parameters(), strict=True):
        assert m.grad is not None
        torch.testing.assert_close(three, 3 * m.grad, rtol=1e-6, atol=0)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_is_that_of_torch_with_clipped_gradients(tiny_llama: Path, precision: str) -> None:
    engine = make(tiny_llama, precision)
    own = [m.detach().clone().requires_grad_() for m in engine.flat_parameters()]
    backward(engine, 100.0)
    grads = [m.grad for m in engine.flat_parameters()]
    for mine, grad in zip(own, grads, strict=True):
        mine.grad = None if grad is None else grad.clone()
    norm = torch.nn.utils.clip_grad_norm_(own, 0.5)
    options = engine.base_optimizer.defaults
    kept = ("betas", "eps", "weight_decay")
    torch.optim.AdamW(own, lr=0.5e-2, **{key: options[key] for key in kept}).step()
    result = engine.step(0.5)
    assert result.applied
    assert result.grad_norm == pytest.approx(float(norm), rel=1e-5)
    assert engine.lr == 0.5e-2
    for mine, master in zip(own, engine.flat_parameters(), strict=True):
        torch.testing.assert_close(master.detach(), mine.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_is_discarded(tiny_llama: Path, precision: str) -> None:
    engine = make(tiny_llama, precision)
    before = [m.detach().clone() for m in engine.flat_parameters()]
    backward(engine, float("inf"))
    result = engine.step(1.0)
    assert not result.applied
    assert all(map(torch.equal, before, engine.flat_parameters()))
    assert not engine.base_optimizer.state
    backward(engine)
    assert engine.step(1.0).applied


def test_what_is_held_is_counted_once(tiny_llama: Path) -> None:
    engine = make(tiny_llama, "bf16")
    count = sum(p.numel() for p in engine.module.parameters())
    assert engine.held()["optimizer"] == 4 * count
    backward(engine)
    engine.step(1.0)
    held = engine.held()
    buffers = sum(b.numel() * b.element_size() for b in engine.module.buffers())
    assert held["weights"] == 2 * count + buffers
    counters = 4 * len(engine.flat_parameters())
    assert held["optimizer"] == 12 * count + counters
    assert held["gradients"] == 0
