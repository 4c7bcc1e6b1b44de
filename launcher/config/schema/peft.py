"""Section `peft`: parameter-efficient methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from launcher.config.schema.ranges import PositiveFloat, PositiveInt, ShareBelowOne


@dataclass(kw_only=True, slots=True)
class PeftConfig:
    """Parameter-efficient method; `none` trains all weights."""

    trains_base: ClassVar[bool] = True
    """Whether the weights of the base are what is trained, and not adapters beside them."""

    name: str = "none"
    """Method: none or lora."""


@dataclass(kw_only=True, slots=True)
class AdapterConfig(PeftConfig):
    """A method that freezes the weights of the model and trains something beside its matrices."""

    trains_base: ClassVar[bool] = False
    not_on_experts: ClassVar[Mapping[str, str]] = {}
    """Options that peft has none of on fused experts, and what turns each off."""

    targets: Any = "all-linear"
    """`all-linear` (all linear layers but the LM head and routers), or names of modules or of fused
    parameters, e.g. [q_proj, v_proj], [all-linear, router]."""
    experts: bool = True
    """Whether `all-linear` has part in the experts that a model keeps fused in one parameter."""
    modules_to_save: list[str] = field(default_factory=list)
    """Modules trained in full beside adapters, e.g. [embed_tokens, lm_head] after adding tokens."""
    adapter: str | None = None
    """Folder of an adapter to train further; `model.name=FOLDER` sets it. Its own rank, alpha,
    targets and so on hold."""

    def parameters(self, inputs: int, outputs: int, experts: int = 1) -> int:
        """Trained parameters beside a matrix [outputs, inputs], or one for each of `experts`."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class LoraConfig(AdapterConfig):
    """Low-rank adapters (Hu et al. 2021, arXiv:2106.09685)."""

    not_on_experts: ClassVar[Mapping[str, str]] = {"dora": "false", "dropout": "0"}

    name: str = "lora"
    """Name of the method."""
    rank: PositiveInt = 16
    """Rank of the update."""
    alpha: PositiveFloat = 32.0
    """Scale: the update is multiplied by alpha / rank (alpha / sqrt(rank) with rslora)."""
    dropout: ShareBelowOne = 0.0
    """Dropout on the adapter's input."""
    dora: bool = False
    """Weight-decomposed adapters (Liu et al. 2024, arXiv:2402.09353)."""
    rslora: bool = False
    """Rank-stabilised scale (Kalajdzievski 2023, arXiv:2312.03732)."""

    def parameters(self, inputs: int, outputs: int, experts: int = 1) -> int:
        """Two factors of `rank` for each matrix; with `dora` a magnitude for each output."""
        return experts * self.rank * (inputs + outputs) + (outputs if self.dora else 0)
