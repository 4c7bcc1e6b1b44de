"""Sections `optim` and `schedule`: the optimizer and its learning rate over the run."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from launcher.config.schema.ranges import (
    NonNegativeFloat,
    PositiveFloat,
    Share,
    ShareAboveZero,
    ShareBelowOne,
)
from launcher.core.errors import Problem


@dataclass(kw_only=True, slots=True)
class OptimConfig:
    """Optimizer and gradient clipping."""

    moment_bytes: ClassVar[int]
    """Bytes of the moments that are kept for each trained parameter."""
    needs_compiler: ClassVar[bool] = False
    """Whether its update is compiled by a C++ compiler when the training starts."""
    kernels: ClassVar[str] = ""
    """Package whose kernels it consists of, for CUDA alone."""
    can_be_offloaded: ClassVar[bool] = True
    """Whether DeepSpeed can keep its moments in the memory of the host."""
    compiled_offloaded: ClassVar[bool] = False
    """Whether its update is compiled there, for the CPU."""

    name: str = "adamw"
    """Optimizer: adamw, adamw8bit or muon."""
    lr: PositiveFloat = 2e-5
    """Peak learning rate."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay; not applied to biases and norm weights."""
    clip_norm: NonNegativeFloat = 1.0
    """Largest global gradient norm; 0 = no clipping."""


@dataclass(kw_only=True, slots=True)
class AdamwConfig(OptimConfig):
    """AdamW (Loshchilov & Hutter 2017, arXiv:1711.05101): torch's fused kernel, or DeepSpeed's CPU
    kernel if offloaded."""

    moment_bytes: ClassVar[int] = 8
    compiled_offloaded: ClassVar[bool] = True

    name: str = "adamw"
    """Name of the optimizer."""
    beta1: ShareBelowOne = 0.9
    """Decay of the first moment."""
    beta2: ShareBelowOne = 0.999
    """Decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""


@dataclass(kw_only=True, slots=True)
class Adamw8bitConfig(AdamwConfig):
    """AdamW of bitsandbytes, 8-bit block-wise moments (Dettmers et al. 2021, arXiv:2110.02861)."""

    moment_bytes: ClassVar[int] = 2
    kernels: ClassVar[str] = "bitsandbytes"
    can_be_offloaded: ClassVar[bool] = False
    compiled_offloaded: ClassVar[bool] = False

    name: str = "adamw8bit"
    """Name of the optimizer."""


@dataclass(kw_only=True, slots=True)
class MuonConfig(OptimConfig):
    """Muon (Jordan et al. 2024) for hidden matrices, AdamW for the rest, through DeepSpeed."""

    moment_bytes: ClassVar[int] = 4
    needs_compiler: ClassVar[bool] = True

    name: str = "muon"
    """Name of the optimizer."""
    lr: PositiveFloat = 2e-3
    """Peak learning rate of the Muon matrices."""
    momentum: ShareBelowOne = 0.95
    """Momentum of the Muon matrices."""
    adam_lr: PositiveFloat = 2e-5
    """Peak learning rate of embeddings, head, norms and biases."""
    beta1: ShareBelowOne = 0.9
    """Adam's decay of the first moment."""
    beta2: ShareBelowOne = 0.999
    """Adam's decay of the second moment."""
    eps: PositiveFloat = 1e-8
    """Adam's epsilon."""


@dataclass(kw_only=True, slots=True)
class ScheduleConfig:
    """Learning rate over the run, as a factor of `optim.lr`."""

    name: str = "cosine"
    """Schedule: constant, linear, cosine or wsd."""
    warmup: NonNegativeFloat = 0.0
    """Linear warm-up: below 1 a share of all steps, from 1 a number of steps."""
    min_ratio: Share = 0.0
    """Factor at the end of the decay (not used by constant)."""

    def problems(self, steps: int | None) -> Iterator[Problem]:
        """What is wrong with it in a run of so many steps; None: nobody has said."""
        if self.warmup >= 1 and self.warmup != int(self.warmup):
            hint = f"from 1 it is a number of steps, e.g. schedule.warmup={int(self.warmup)};"
            hint += " below 1 a share of all, e.g. schedule.warmup=0.05"
            yield Problem("schedule.warmup", f"{self.warmup} is not a number of steps", hint)
        elif steps is not None and self.warmup >= max(1, steps):
            hint = "leave steps for training, e.g. schedule.warmup=0.05 of them; or more"
            found = f"{self.warmup:g} of train.steps={steps}"
            yield Problem("schedule.warmup", found, f"{hint} train.steps")

    def factor(self, step: int, steps: int, warmup_steps: int) -> float:
        """Factor for optimizer step `step` (0-based) of `steps`.

        The first step of a warm-up already moves: it has factor 1 / (warmup_steps + 1). A decay
        begins at 1 and would reach `min_ratio` one step after the last, so no step is taken at a
        rate of 0.
        """
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        begin = self.decay_begin(steps, warmup_steps)
        if self.name == "constant" or step < begin:
            return 1.0
        progress = min(1.0, (step - begin) / max(1, steps - begin))
        if self.name == "cosine":
            decayed = 0.5 * (1 + math.cos(math.pi * progress))
        else:
            decayed = 1 - progress
        return self.min_ratio + (1 - self.min_ratio) * decayed

    def decay_begin(self, steps: int, warmup_steps: int) -> int:
        """The first step that the rate falls after."""
        return warmup_steps


@dataclass(kw_only=True, slots=True)
class WsdConfig(ScheduleConfig):
    """Warm-up, stable, decay (Hu et al. 2024, arXiv:2404.06395): constant, then linear decay."""

    name: str = "wsd"
    """Name of the schedule."""
    decay: ShareAboveZero = 0.2
    """Share of all steps at the end that decay."""

    def problems(self, steps: int | None) -> Iterator[Problem]:
        """Warm-up and decay have to leave room for each other too."""
        yield from ScheduleConfig.problems(self, steps)
        if steps is None:
            is_long = self.warmup < 1 < self.warmup + self.decay
        else:
            warmup = self.warmup if self.warmup >= 1 else self.warmup * steps
            is_long = steps > warmup > steps * (1 - self.decay)
        if is_long:
            found = f"{self.decay} with schedule.warmup={self.warmup:g} is more than all steps"
            left = math.floor(100 * (1 - self.decay)) / 100
            hint = f"make one of the two shorter, e.g. schedule.warmup={left:g}"
            yield Problem("schedule.decay", found, hint)

    def decay_begin(self, steps: int, warmup_steps: int) -> int:
        """So that `decay` of the steps are left."""
        return max(warmup_steps, steps - round(self.decay * steps))
