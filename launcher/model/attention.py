"""Attention in which packed documents never see each other, registered in transformers' table.

A row is several documents one behind the other. Their boundaries travel to every layer as the
`cu_seq_lens_q` keyword, which transformers' models hand on to the attention function; `packed_row`
holds them for models that do not.

- `launcher_document`: one SDPA call a document; the fast way on CPU, runs anywhere.
- `launcher_varlen`: torch's `varlen_attn`, one kernel for all documents (CUDA, 16 bit).

Both know causal attention, sliding windows, chunks, soft-capped scores, sinks and biases by
position. Of anything else that a model says they raise `Unknown`: `launcher.health.isolation` then
has the documents padded, for the model's own attention.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from launcher.core.errors import ConfigError

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

#: How boundaries are handed on to attention, and to the kernels of other layers.
BOUNDARIES = frozenset(
    {"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k", "seq_idx"}
)

#: Layers whose pattern is known by this name; others may hide theirs in a mask.
_LAYER_TYPES = frozenset(
    {"full_attention", "sliding_attention", "chunked_attention", "attention", "hybrid"}
)

#: Tensors that a model hands on to attention and that do not change what it computes.
_HARMLESS = frozenset({"position_ids", "cache_position", "cu_seq_lens_k", "seq_idx", "labels"})

_starts: ContextVar[torch.Tensor | None] = ContextVar("document_starts", default=None)


class Unknown(ConfigError):
    """The model asks for attention that packed rows do not have here."""


@contextmanager
def packed_row(starts: torch.Tensor | None) -> Iterator[None]:
    """Mark a forward over a row of documents that begin at `starts`, int32 [documents + 1]: the
    last is the row's length. No mask is built; attention and mixers stay within documents."""
    token = _starts.set(starts)
    try:
        yield
    finally:
        _starts.reset(token)


def document_starts() -> torch.Tensor | None:
    """The boundaries of the packed row whose forward is running; None outside of one."""
    return _starts.get()


def checkpoint_contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """For `torch.utils.checkpoint`: what is computed again in backward, when the forward is over,
    is computed with the same boundaries."""
    return nullcontext(), packed_row(_starts.get())


def register() -> None:
    """Add both functions to transformers' tables; safe to call again."""
    AttentionInterface.register(DOCUMENT, document_attention)
    AttentionInterface.register(VARLEN, varlen_attention)
    AttentionMaskInterface.register(DOCUMENT, _mask)
    AttentionMaskInterface.register(VARLEN, _mask)


def isolates(model: Any) -> bool:
    """Whether the attention that `model` was loaded with keeps the documents of a row apart."""
    return model.config._attn_implementation in (DOCUMENT, VARLEN, "flash_attention_2")


def supported(model_class: Any, implementation: str) -> str:
    """`implementation`, or what a class of transformers has instead that looks attention up in a
    table of its own, or has no SDPA."""
    own_table = not model_class._can_set_attn_implementation()
    if implementation in (DOCUMENT, VARLEN) and own_table:
        implementation = "sdpa"
    if implementation == "sdpa" and not model_class._supports_sdpa:
        return "eager"
    return implementation


def _mask(*args: Any, use_vmap: bool = False, **kwargs: Any) -> torch.Tensor | None:
    if _starts.get() is None:
        return sdpa_mask(*args, use_vmap=use_vmap, **kwargs)
    if use_vmap:  # so it is for masks with a pattern of the model's own alone
        raise Unknown("a mask of its own, which attention within documents cannot follow")
    return None


@dataclass(frozen=True, slots=True)
class _Pattern:
    """What a token attends to within its document."""

    window: int | None
    """This many tokens, itself included."""
    chunk: int | None
    """Tokens of the same chunk, as if the document were cut every so many tokens."""


def _pattern(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    window: int | None,
    options: dict[str, Any],
) -> _Pattern:
    """The pattern of a layer; `Unknown` unless all that it says is understood."""
    causal = options.get("is_causal")
    if not (getattr(module, "is_causal", True) if causal is None else causal):
        raise Unknown("attention in both directions")
    if query.shape[2] != key.shape[2]:
        raise Unknown("keys that are not its tokens")
    for name, value in options.items():
        if isinstance(value, torch.Tensor) and name not in _HARMLESS:
            raise Unknown(f"attention with {name}")
    config, layer = getattr(module, "config", None), getattr(module, "layer_idx", None)
    types = getattr(config, "layer_types", None)
    kind = types[layer] if types and layer is not None and layer < len(types) else "attention"
    if kind not in _LAYER_TYPES:
        raise Unknown(f"layers of type {kind}")
    if kind == "sliding_attention" and window is None:
        window = config.sliding_window  # type: ignore[union-attr]
    chunked = kind == "chunked_attention"
    return _Pattern(window, config.attention_chunk_size if chunked else None)  # type: ignore[union-attr]


def _cut(starts: list[int], chunk: int | None) -> list[int]:
    """Starts of the stretches of a row that attend to themselves alone: documents, or chunks."""
    if chunk is None:
        return starts
    pairs = zip(starts[:-1], starts[1:], strict=True)
    return [*(i for start, end in pairs for i in range(start, end, chunk)), starts[-1]]


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
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each document.

    query [1, H, N, D], key and value [1, K, N, D] -> [1, N, H, D]. `cu_seq_lens_q` [documents + 1]
    holds the starts of the documents and N; `s_aux` [H] are scores of a key that nothing is read
    from; `position_bias` [1, H, N, N] is added to the scores. Outside a packed row (generation)
    this is transformers' SDPA. Raises `Unknown` for what is none of these.
    """
    starts = _starts.get() if cu_seq_lens_q is None else cu_seq_lens_q
    if starts is None:
        return _unpacked(
            *(module, query, key, value, attention_mask, scaling, dropout),
            *(softcap, s_aux, position_bias, kwargs),
        )
    pattern = _pattern(module, query, key, sliding_window, kwargs)
    cuts = _cut(starts.tolist(), pattern.chunk)
    if _has_cpu_kernel(query, value, dropout, softcap, position_bias):
        return _FlashCpu.apply(query, key, value, s_aux, cuts, scaling, pattern.window), None
    lengths = [end - start for start, end in zip(cuts[:-1], cuts[1:], strict=True)]
    # split, not slices: its backward is one concatenation, that of a slice fills a whole gradient.
    documents = zip(*(x.split(lengths, dim=2) for x in (query, key, value)), cuts, strict=False)
    pieces = []
    for q, k, v, start in documents:
        length = q.shape[2]
        within = pattern.window is None or length <= pattern.window
        bias = None
        if position_bias is not None:
            bias = position_bias[:, :, start : start + length, start : start + length]
        if softcap is not None or s_aux is not None:
            mask = _window_mask(length, pattern.window, q.device)
            pieces.append(_scored(q, k, v, mask, scaling, dropout, softcap, s_aux, bias))
        elif bias is not None:
            mask = _window_mask(length, pattern.window, q.device)
            masked = bias.to(q.dtype).masked_fill(~mask, torch.finfo(q.dtype).min)
            pieces.append(_sdpa(q, k, v, scaling, dropout, attn_mask=masked))
        elif not within:
            mask = _window_mask(length, pattern.window, q.device)
            pieces.append(_sdpa(q, k, v, scaling, dropout, attn_mask=mask))
        else:
            pieces.append(_sdpa(q, k, v, scaling, dropout, is_causal=True))
    return torch.cat(pieces, dim=2).transpose(1, 2).contiguous(), None


class _FlashCpu(torch.autograd.Function):
    """Causal attention, stretch by stretch, with torch's CPU kernel for SDPA.

    Shapes as in `document_attention`. All stretches write into one output and one gradient: a piece
    of the graph for each would hold every output twice and concatenate in backward.

    A sink is one more key with a value of zero. So what the kernel gives without it is scaled by
    the share of the other keys, and its backward is right once it is told the output and the sum of
    exponentials that include the sink.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor | None,
        starts: list[int],
        scaling: float | None,
        window: int | None,
    ) -> torch.Tensor:
        rows, heads, tokens, width = query.shape
        result = query.new_empty(rows, tokens, heads, width)
        out = result.transpose(1, 2)
        exact = torch.float64 if query.dtype == torch.float64 else torch.float32
        sums = query.new_empty(rows, heads, tokens, dtype=exact)
        for start, end in zip(starts[:-1], starts[1:], strict=True):
            q, k, v = (x[:, :, start:end] for x in (query, key, value))
            mask = _additive_window(q, window)
            piece, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, 0.0, mask is None, attn_mask=mask, scale=scaling
            )
            if sinks is not None:
                own = sinks.to(exact).view(1, -1, 1)
                piece = piece * torch.sigmoid(logsumexp - own).unsqueeze(-1).to(piece.dtype)
                logsumexp = torch.logaddexp(logsumexp, own)
            out[:, :, start:end] = piece
            sums[:, :, start:end] = logsumexp
        ctx.save_for_backward(query, key, value, result, sums, sinks)
        ctx.starts, ctx.scaling, ctx.window = starts, scaling, window
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, result, sums, sinks = ctx.saved_tensors
        out, grad = result.transpose(1, 2), grads[0].transpose(1, 2)
        gradients = tuple(torch.empty_like(x) for x in (query, key, value))
        for start, end in zip(ctx.starts[:-1], ctx.starts[1:], strict=True):
            part = (slice(None), slice(None), slice(start, end))
            q, k, v = query[part], key[part], value[part]
            mask = _additive_window(q, ctx.window)
            pieces = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *(grad[part], q, k, v, out[part], sums[part], 0.0, mask is None),
                attn_mask=mask,
                scale=ctx.scaling,
            )
            for gradient, piece in zip(gradients, pieces, strict=True):
                gradient[part] = piece
        of_sinks = None
        if sinks is not None and ctx.needs_input_grad[3]:
            share = torch.exp(sinks.to(sums.dtype).view(1, -1, 1) - sums)
            of_sinks = -(share * (grad * out).sum(-1)).sum((0, 2)).to(sinks.dtype)
        return *gradients, of_sinks, None, None, None


def _additive_window(query: torch.Tensor, window: int | None) -> torch.Tensor | None:
    """What the CPU kernel adds to scores of a stretch longer than `window`; None for others."""
    length = query.shape[2]
    if window is None or length <= window:
        return None
    mask = _window_mask(length, window, query.device)
    zeros = query.new_zeros(length, length)
    return zeros.masked_fill_(~mask, -torch.inf)


def _has_cpu_kernel(
    query: torch.Tensor,
    value: torch.Tensor,
    dropout: float,
    softcap: float | None,
    bias: torch.Tensor | None,
) -> bool:
    same_width = query.shape[-1] == value.shape[-1]
    plain = not dropout and softcap is None and bias is None
    return query.device.type == "cpu" and plain and same_width


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
    s_aux: torch.Tensor | None = None,
    position_bias: torch.Tensor | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """The same function as `document_attention` in one kernel call, for CUDA in 16 bit."""
    starts = _starts.get() if cu_seq_lens_q is None else cu_seq_lens_q
    plain = softcap is None and s_aux is None and position_bias is None and not dropout
    if starts is None or not plain or not _has_kernel(query, value):
        return document_attention(
            *(module, query, key, value, attention_mask, scaling, dropout, sliding_window, softcap),
            *(starts, s_aux, position_bias),
            **kwargs,
        )
    pattern = _pattern(module, query, key, sliding_window, kwargs)
    sliding_window = pattern.window
    if pattern.chunk is not None:
        starts = starts.new_tensor(_cut(starts.tolist(), pattern.chunk))
    if not max_length_q or pattern.chunk is not None:
        max_length_q = int(starts.diff().max())
    q, k, v = (x[0].transpose(0, 1).contiguous() for x in (query, key, value))
    options, native_gqa = _varlen_options(sliding_window)
    groups = q.shape[1] // k.shape[1]
    if groups > 1 and not native_gqa:
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    elif groups > 1:
        options["enable_gqa"] = True
    from torch.nn.attention.varlen import varlen_attn

    out: Any = varlen_attn(
        q, k, v, starts, starts, max_length_q, max_length_q, scale=scaling, **options
    )
    packed: torch.Tensor = out.unsqueeze(0)
    return packed, None


def _has_kernel(query: torch.Tensor, value: torch.Tensor) -> bool:
    width = query.shape[-1]
    fits = width % 8 == 0 and width <= 256 and value.shape[-1] == width
    return query.is_cuda and query.dtype != torch.float32 and fits


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
    softcap: float | None,
    sinks: torch.Tensor | None,
    bias: torch.Tensor | None,
    kwargs: dict[str, Any],
) -> tuple[torch.Tensor, None]:
    """Generation: padded batches with a mask from `_mask`, through transformers' own SDPA."""
    if softcap is None and sinks is None:
        result: tuple[torch.Tensor, None] = sdpa_attention_forward(
            *(module, query, key, value, attention_mask),
            dropout=dropout,
            scaling=scaling,
            position_bias=bias,
            **kwargs,
        )
        return result
    if attention_mask is None:
        rows, columns = query.shape[2], key.shape[2]
        ones = torch.ones(rows, columns, dtype=torch.bool, device=query.device)
        attention_mask = ones.tril(columns - rows)
    out = _scored(query, key, value, attention_mask, scaling, dropout, softcap, sinks, bias)
    return out.transpose(1, 2), None


def _window_mask(length: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Boolean [length, length]: token i sees j where i - window < j <= i."""
    mask = torch.ones(length, length, dtype=torch.bool, device=device).tril()
    return mask if window is None else mask.triu(1 - window)


def _scored(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
    sinks: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Attention by the plain formula, for scores that no SDPA kernel has: tanh-capped (Gemma 2,
    arXiv:2408.00118), or with a sink, one more score that takes its share (gpt-oss)."""
    groups = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    scores = q @ k.transpose(-1, -2) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if bias is not None:
        scores = scores + bias
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    if sinks is not None:
        own = sinks.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        scores = torch.cat([scores, own], dim=-1)
    exact = torch.promote_types(scores.dtype, torch.float32)
    weights = scores.softmax(-1, exact)[..., : k.shape[2]]
    weights = torch.nn.functional.dropout(weights.to(v.dtype), dropout)
    return weights @ v
