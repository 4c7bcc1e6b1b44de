"""The rules of the `model` section: what the machine and the other sections allow a model to be."""

from __future__ import annotations

import math
import shutil
from collections.abc import Iterator

from launcher.config.derive import architecture, quantized
from launcher.config.derive.plan import resolve_precision
from launcher.config.schema import Attention, Config, Dtype, Kernels, Quantization, TinyModelConfig
from launcher.core import registry
from launcher.core.errors import Problem

#: attention kernels that exist on CUDA only, and for 16-bit numbers only.
CUDA_ONLY = (Attention.varlen, Attention.flash)
COMPILERS = ("c++", "g++", "clang++")


def check(config: Config, has_gpu: bool) -> Iterator[Problem]:
    """Problems of the model, of its making (tiny) and of its attention."""
    yield from _model(config, has_gpu)
    yield from _stored(config)
    yield from _tiny(config)
    yield from _positions(config)
    yield from _attention(config, has_gpu)
    if config.objective.has_sequence_head and architecture.is_encoder(config.model):
        yield from _encoder(config)


def _encoder(config: Config) -> Iterator[Problem]:
    if config.data.packing:
        hint = "its texts are padded, not packed: data.packing=false"
        found = f"true with {config.model.name}, which is no decoder"
        yield Problem("data.packing", found, hint)
    if config.model.attention in (Attention.document, Attention.varlen):
        hint = "model.attention=auto (sdpa) for a model that reads in both directions"
        yield Problem("model.attention", config.model.attention.name, hint)


def _model(config: Config, has_gpu: bool) -> Iterator[Problem]:
    model = config.model
    if model.kind == "hf" and not model.name:
        hint = "model.name=<hub name or folder>, a preset such as model=qwen3-0.6b, or model=tiny"
        yield Problem("model.name", "no base model is given", hint)
    if model.quantization is Quantization.nf4:
        if config.peft.trains_base:
            hint = "4-bit weights cannot be trained: add peft=lora, or model.quantization=none"
            yield Problem("model.quantization", f"nf4 with peft={config.peft.name}", hint)
        instead = "model.quantization=none"
        yield from kernels("bitsandbytes", "model.quantization", "nf4", instead, has_gpu)
        if config.engine.zero == 3:
            hint = "ZeRO-3 cannot shard packed 4-bit weights: use engine=zero2"
            yield Problem("model.quantization", "nf4 with engine.zero=3", hint)
    precision = resolve_precision(config, has_gpu)
    if model.dtype not in (Dtype.auto, Dtype.fp32) and model.dtype.name != precision:
        hint = f"leave model.dtype=auto, or set engine.precision={model.dtype.name}"
        found = f"{model.dtype.name} weights with engine.precision={precision}"
        yield Problem("model.dtype", found, hint)
    if model.gradient_checkpointing and model.activation_gib is not None:
        hint = "model.activation_gib=null for all layers, or model.gradient_checkpointing=false"
        found = f"{model.activation_gib:g} with model.gradient_checkpointing=true"
        yield Problem("model.activation_gib", found, hint)
    if model.kernels is Kernels.liger:
        yield from _liger(config, has_gpu)
    if model.fp8:
        yield from _fp8(config, precision, has_gpu)
    if config.train.deterministic and model.compile and has_gpu:
        hint = "kernels of a GPU are chosen by the clock: model.compile=false"
        yield Problem("train.deterministic", "true with model.compile=true", hint)
    if model.compile and not compiler():
        hint = f"install one of {', '.join(COMPILERS)}, or model.compile=false"
        yield Problem("model.compile", "torch.compile needs a C++ compiler; none is found", hint)


def _liger(config: Config, has_gpu: bool) -> Iterator[Problem]:
    instead = "model.kernels=torch"
    if not has_gpu:
        hint = f"its kernels need CUDA: use {instead}, or a GPU"
        yield Problem("model.kernels", "liger on CPU", hint)
    elif not registry.installed("liger_kernel"):
        hint = f"pip install liger-kernel, or {instead}"
        yield Problem("model.kernels", "liger needs liger-kernel, which is missing", hint)
    if config.model.compile:
        hint = f"each fuses what the other does: model.compile=false, or {instead}"
        yield Problem("model.kernels", "liger with model.compile=true", hint)


def _fp8(config: Config, precision: str, has_gpu: bool) -> Iterator[Problem]:
    instead = "model.fp8=false"
    yield from kernels("torchao", "model.fp8", "true", instead, has_gpu)
    if not config.peft.trains_base:
        hint = f"torchao computes gradients of frozen weights too: {instead}, or peft=none"
        yield Problem("model.fp8", f"true with peft={config.peft.name}", hint)
    if has_gpu and precision != "bf16":
        hint = f"it takes the place of bf16: engine.precision=bf16, or {instead}"
        yield Problem("model.fp8", f"true with engine.precision={precision}", hint)
    elif config.model.dtype is Dtype.fp32:
        hint = f"it takes the place of bf16: model.dtype=auto, or {instead}"
        yield Problem("model.fp8", "true with model.dtype=fp32", hint)
    if config.engine.zero == 3:
        hint = f"its layers are not known to find sharded weights: engine=zero2, or {instead}"
        yield Problem("model.fp8", "true with engine.zero=3", hint)


def _stored(config: Config) -> Iterator[Problem]:
    found = architecture.quantization(config.model)
    if found is not None:
        nf4 = config.model.quantization is Quantization.nf4
        problem = quantized.problem(str(config.model.name), found, nf4=nf4)
        if problem is not None:
            yield problem


def _tiny(config: Config) -> Iterator[Problem]:
    model = config.model
    if not isinstance(model, TinyModelConfig):
        return
    if model.name is not None:
        hint = "leave model.name out, or use model=hf"
        yield Problem("model.name", f"{model.name!r} with model=tiny, which is made here", hint)
    if model.heads > 0 and model.hidden_size % model.heads:
        found = f"{model.hidden_size} is not a multiple of model.heads={model.heads}"
        yield Problem("model.hidden_size", found, f"try model.hidden_size={model.heads * 32}")
    elif model.heads > 0 and model.hidden_size // model.heads % 2:
        found = f"{model.hidden_size} gives heads of odd size {model.hidden_size // model.heads}"
        even = 2 * model.heads * math.ceil(model.hidden_size / (2 * model.heads))
        hint = f"rotary positions need an even head size: try model.hidden_size={even}"
        yield Problem("model.hidden_size", found, hint)
    if model.kv_heads > 0 and model.heads % model.kv_heads:
        found = f"{model.kv_heads} does not divide model.heads={model.heads}"
        fewer = max(
            n for n in range(1, model.heads + 1) if model.heads % n == 0 and n < model.kv_heads
        )
        hint = f"query heads share key heads in equal groups: try model.kv_heads={fewer}"
        yield Problem("model.kv_heads", found, hint)
    if config.data.max_length > model.max_positions:
        found = f"{config.data.max_length} is beyond model.max_positions={model.max_positions}"
        hint = f"data.max_length={model.max_positions}, or a larger model.max_positions"
        yield Problem("data.max_length", found, hint)


def _positions(config: Config) -> Iterator[Problem]:
    known = architecture.positions(config.model)
    if known is not None and known.are_rows and config.data.max_length > known.count:
        yield too_long(config.data.max_length, known.count)


def too_long(max_length: int, count: int) -> Problem:
    """`data.max_length` for a model that has a table of `count` positions."""
    found = f"{max_length} is beyond the {count} positions of the model"
    return Problem("data.max_length", found, f"data.max_length={count}, or a model that reads more")


def _attention(config: Config, has_gpu: bool) -> Iterator[Problem]:
    attention = config.model.attention
    if attention in CUDA_ONLY:
        if not has_gpu:
            hint = "use model.attention=auto (per-document SDPA on CPU)"
            yield Problem("model.attention", f"{attention.name} on CPU", hint)
        elif resolve_precision(config, has_gpu) == "fp32":
            hint = (
                "its kernels know 16-bit numbers only: engine.precision=bf16, or attention=document"
            )
            yield Problem("model.attention", f"{attention.name} with fp32", hint)
        if attention is Attention.flash and not registry.installed("flash_attn"):
            hint = "pip install flash-attn, or model.attention=varlen (part of torch)"
            yield Problem("model.attention", "flash needs flash-attn, which is missing", hint)


def kernels(package: str, where: str, value: str, instead: str, has_gpu: bool) -> Iterator[Problem]:
    """What keeps a value from being used whose kernels for CUDA come with a package."""
    if not has_gpu:
        yield Problem(where, f"{value} on CPU", f"its kernels need CUDA: use {instead}, or a GPU")
    elif not registry.installed(package):
        hint = f"pip install {package}, or {instead}"
        yield Problem(where, f"{value} needs {package}, which is missing", hint)


def compiler() -> bool:
    """Whether a C++ compiler is on the path."""
    return any(shutil.which(name) for name in COMPILERS)
