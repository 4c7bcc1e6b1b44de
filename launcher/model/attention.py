"""Attention in which packed documents never see each other, registered in transformers' table.

A row is several documents one behind the other. Their boundaries travel to every layer as the
`cu_seq_lens_q` keyword, which transformers' models hand on to the attention function.

- `launcher_document`: one SDPA call a document; the fast way on CPU, runs anywhere.
- `launcher_varlen`: torch's `varlen_attn`, one kernel for all documents (CUDA, 16 bit).
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from launcher.errors import ConfigError

DOCUMENT = "launcher_document"
VARLEN = "launcher_varlen"

#: plan.attention -> attn_implementation of transformers
IMPLEMENTATIONS = {
    "document": DOCUMENT,
    "varlen": VARLEN,
    "flash": "flash_attention_2",
    "sdpa": "sdpa",
    "eager": "eager",
}

_packed: ContextVar[bool] = ContextVar("packed", default=False)


@contextmanager
def packed_row() -> Iterator[None]:
    """Mark a forward over a packed row: no mask is built; attention without boundaries fails."""
    token = _packed.set(True)
    try:
        yield
    finally:
        _packed.reset(token)


def register() -> None:
    """Add both functions to transformers' tables; safe to call again."""
    AttentionInterface.register(DOCUMENT, document_attention)
    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(DOCUMENT, _mask)
    AttentionMaskInterface.register(VARLEN, _mask)


def _mask(*args: Any, **kwargs: Any) -> torch.Tensor | None:
    return None if _packed.get() else sdpa_mask(*args, **kwargs)


def document_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document.

    query [1, H, N, D], key and value [1, K, N, D] -> [1, N, H, D]. `cu_seq_lens_q` [documents + 1]
    holds the starts of the documents and N. Without it (generation) this is transformers' SDPA.
    """
    if cu_seq_lens_q is None:
        return _unpacked(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling,
            dropout,
            sliding_window,
            softcap,
            kwargs,
        )
    _refuse_sinks(kwargs)
    starts = cu_seq_lens_q.tolist()
    if _has_cpu_kernel(query, value, dropout, softcap):
        longest = max(end - start for start, end in zip(starts[:-1], starts[1:], strict=True))
        if sliding_window is None or longest <= sliding_window:
            return _FlashCpu.apply(query, key, value, starts, scaling), None
    lengths = [end - start for start, end in zip(starts[:-1], starts[1:], strict=True)]
    # split, not slices: its backward is one concatenation, that of a slice fills a whole gradient.
    documents = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), strict=True)
    pieces = []
    for q, k, v in documents:
        length = q.shape[2]
        if softcap is not None:
            mask = _window_mask(length, sliding_window, q.device)
            pieces.append(_capped(q, k, v, mask, scaling, dropout, softcap))
        elif sliding_window is not None and length > sliding_window:
            mask = _window_mask(length, sliding_window, q.device)
            pieces.append(_sdpa(q, k, v, scaling, dropout, attn_mask=mask))
        else:
            pieces.append(_sdpa(q, k, v, scaling, dropout, is_causal=True))
    return torch.cat(pieces, dim=2).transpose(1, 2), None


class _FlashCpu(torch.autograd.Function):
    """Causal attention, document by document, with torch's CPU kernel for SDPA.

    Shapes as in `document_attention`. All documents write into one output and one gradient: a
    piece of the graph for each document would hold every output twice and concatenate in backward.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        starts: list[int],
        scaling: float | None,
    ) -> torch.Tensor:
        rows, heads, tokens, width = query.shape
        result = query.new_empty(rows, tokens, heads, width)
        out = result.transpose(1, 2)
        exact = torch.float64 if query.dtype == torch.float64 else torch.float32
        sums = query.new_empty(rows, heads, tokens, dtype=exact)
        for start, end in zip(starts[:-1], starts[1:], strict=True):
            q, k, v = (x[:, :, start:end] for x in (query, key, value))
            piece, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, True, scale=scaling
            )
            out[:, :, start:end] = piece
            sums[:, :, start:end] = logsumexp
        ctx.save_for_backward(query, key, value, result, sums)
        ctx.starts, ctx.scaling = starts, scaling
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, result, sums = ctx.saved_tensors
        out, grad = result.transpose(1, 2), grads[0].transpose(1, 2)
        gradients = tuple(torch.empty_like(x) for x in (query, key, value))
        for start, end in zip(ctx.starts[:-1], ctx.starts[1:], strict=True):
            part = (slice(None), slice(None), slice(start, end))
            q, k, v = query[part], key[part], value[part]
            pieces = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad[part], q, k, v, out[part], sums[part], 0.0, True, scale=ctx.scaling
            )
            for gradient, piece in zip(gradients, pieces, strict=True):
                gradient[part] = piece
        return *gradients, None, None


def _has_cpu_kernel(
    query: torch.Tensor, value: torch.Tensor, dropout: float, softcap: float | None
) -> bool:
    same_width = query.shape[-1] == value.shape[-1]
    return query.device.type == "cpu" and not dropout and softcap is None and same_width


def _sdpa(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    scaling: float | None,
    dropout: float,
    **options: Any,
) -> torch.Tensor:
    grouped = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(
        q, k, v, dropout_p=dropout, scale=scaling, enable_gqa=grouped, **options
    )


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The same function as `document_attention` in one kernel call, for CUDA in 16 bit."""
    if cu_seq_lens_q is None:
        return _unpacked(
            module,
            query,
            key,
            value,
            attention_mask,
            scaling,
            dropout,
            sliding_window,
            softcap,
            kwargs,
        )
    _refuse_sinks(kwargs)
    if softcap is not None or dropout or not _has_kernel(query):
        return document_attention(
            module,
            query,
            key,
            value,
            None,
            scaling,
            dropout,
            sliding_window,
            softcap,
            cu_seq_lens_q,
        )
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    options, native_gqa = _varlen_options(sliding_window)
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and not native_gqa:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    elif groups > 1:
        options["enable_gqa"] = True
    from torch.nn.attention.varlen import varlen_attn

    out: Any = varlen_attn(
        q, k, v, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling, **options
    )
    packed: torch.Tensor = out.unsqueeze(0)
    return packed, None


def _has_kernel(query: torch.Tensor) -> bool:
    width = query.shape[-1]
    return query.is_cuda and query.dtype != torch.float32 and width % 8 == 0 and width <= 256


def _varlen_options(sliding_window: int | None) -> tuple[dict[str, Any], bool]:
    """Keywords of a causal call; whether heads are grouped natively. Changed since torch 2.10."""
    from torch.nn.attention.varlen import varlen_attn

    parameters = inspect.signature(varlen_attn).parameters
    if "window_size" in parameters:
        left = -1 if sliding_window is None else sliding_window - 1
        return {"window_size": (left, 0)}, "enable_gqa" in parameters
    if sliding_window is not None:
        raise ConfigError(
            "this torch's varlen attention has no sliding window",
            where="model.attention",
            hint="use model.attention=document or a newer torch",
        )
    return {"is_causal": True}, "enable_gqa" in parameters


def _unpacked(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None,
    dropout: float,
    sliding_window: int | None,
    softcap: float | None,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, None]:
    """Generation: padded batches with a mask from `_mask`, through transformers' own SDPA."""
    if _packed.get():
        raise ConfigError(
            f"{type(module).__name__} does not hand document boundaries to its attention, so packed"
            " documents would see each other",
            where="data.packing",
            hint="set data.packing=false model.attention=sdpa",
        )
    _refuse_sinks(kwargs)
    if softcap is not None:
        if attention_mask is None:
            rows, columns = query.shape[2], key.shape[2]
            ones = torch.ones(rows, columns, dtype=torch.bool, device=query.device)
            attention_mask = ones.tril(columns - rows)
        capped = _capped(query, key, value, attention_mask, scaling, dropout, softcap)
        return capped.transpose(1, 2), None
    result: tuple[torch.Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
    )
    return result


def _refuse_sinks(kwargs: dict[str, Any]) -> None:
    if kwargs.get("s_aux") is not None:
        raise ConfigError(
            "this model uses attention sinks, which packed attention does not compute",
            where="model.attention",
            hint="set data.packing=false model.attention=eager",
        )


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Boolean [length, length]: token i sees j where i - window < j <= i."""
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return mask if window is None else mask.triu(1 - window)


def _capped(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    dropout: float,
    softcap: float,
) -> torch.Tensor:
    """Attention with tanh-capped scores (Gemma 2, arXiv:2408.00118), which no SDPA kernel has."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    scores = torch.tanh(q @ k.transpose(-1, -2) * scale / softcap) * softcap
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1, torch.float32)
    weights = torch.nn.functional.dropout(weights.to(v.dtype), dropout)
    return weights @ v
