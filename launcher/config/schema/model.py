"""Section `model`: the base model and how it computes."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Annotated

from launcher.config.schema.ranges import PositiveFloat, PositiveInt, Range


class Dtype(Enum):
    """Number format of weights or of computation."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Attention(Enum):
    """Attention implementation."""

    auto = "auto"
    varlen = "varlen"
    flash = "flash"
    document = "document"
    sdpa = "sdpa"
    eager = "eager"


class Kernels(Enum):
    """Who computes norms, rotary positions and gated MLPs."""

    torch = "torch"
    liger = "liger"


class Quantization(Enum):
    """Storage format of frozen base weights."""

    none = "none"
    nf4 = "nf4"


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The base model and how it computes."""

    kind: str = "hf"
    """Loader: `hf` (any Hugging Face causal language model) or `tiny` (made on the spot)."""
    name: str | None = None
    """Hub name or folder of the base model."""
    revision: str | None = None
    """Branch, tag or commit of a hub model."""
    tokenizer: str | None = None
    """Hub name or folder of the tokenizer, if it is not the model's own."""
    chat_template: str | None = None
    """File with a Jinja chat template that replaces the tokenizer's own."""
    add_tokens: list[str] = field(default_factory=list)
    """Special tokens to add; embeddings are resized to fit."""
    adapter: str | None = None
    """Folder of an adapter that is merged into the base before training; it names the base."""
    dtype: Dtype = Dtype.auto
    """Format in which the weights are loaded; `auto` follows `engine.precision`."""
    attention: Attention = Attention.auto
    """`auto` picks what isolates packed documents: varlen on CUDA, per-document SDPA on CPU."""
    kernels: Kernels = Kernels.torch
    """Norms, rotary positions and gated MLPs: the model's own code, or the fused kernels of Liger
    (`liger-kernel`, CUDA)."""
    fp8: bool = False
    """Matrix products of the decoder layers in FP8, when all weights are trained in bf16 (torchao;
    CUDA, compute capability 8.9 or later)."""
    quantization: Quantization = Quantization.none
    """Format of frozen base weights: `nf4` is 4-bit NormalFloat (bitsandbytes, CUDA; needs a `peft`
    method)."""
    gradient_checkpointing: bool = False
    """Recompute activations in backward: less memory, about a third more compute."""
    activation_gib: PositiveFloat | None = None
    """GiB that the activations of a rank may take, by the plan's estimate: as many of the first
    layers recompute theirs as that needs, and no more."""
    compile: bool = False
    """Compile the decoder layers with torch.compile (needs a C++ compiler)."""
    trust_remote_code: bool = False
    """Allow Python code that comes with a hub model."""


@dataclass(kw_only=True, slots=True)
class TinyModelConfig(ModelConfig):
    """A small Llama with a byte-level BPE tokenizer, made and cached at first use, offline."""

    kind: str = "tiny"
    """Loader: always `tiny` here."""
    vocab_size: Annotated[int, Range(264)] = 512
    """Tokens of the byte-level BPE, special tokens included."""
    hidden_size: PositiveInt = 128
    """Width of the residual stream."""
    intermediate_size: PositiveInt = 256
    """Width of the gated MLP."""
    layers: PositiveInt = 3
    """Number of decoder layers."""
    heads: PositiveInt = 4
    """Attention heads."""
    kv_heads: PositiveInt = 4
    """Key and value heads; fewer than `heads` is grouped-query attention."""
    max_positions: Annotated[int, Range(2)] = 1024
    """Longest sequence."""
    tie_embeddings: bool = True
    """Share the input embedding and the LM head."""
    recipe: str | None = None
    """Experiment that pre-trains this model: it runs first, once, and what it exports is cached and
    used as the base; without it the base is randomly initialised."""
