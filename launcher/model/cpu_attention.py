"""Causal attention within stretches of a row, with torch's CPU kernel for SDPA.

`attend` is what runs; `packed` is the same as one operator of torch, which compiled code can hold
though the stretches are known only when it runs.

A sink is one more key with a value of zero. So what the kernel gives without it is scaled by the
share of the other keys, and its backward is right once it is told the output and the sum of
exponentials that include the sink.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def cut(starts: list[int], chunk: int | None) -> list[int]:
    """Starts of the stretches of a row that attend to themselves alone: documents, or chunks."""
    if chunk is None:
        return starts
    return [*(i for start, end in pairwise(starts) for i in range(start, end, chunk)), starts[-1]]


def window_mask(length: int, window: int | None, device: torch.device, before: int = 0) -> Tensor:
    """Boolean [length, before + length]: of the last tokens of a stretch, token i sees j where
    i - window < j <= i."""
    mask = torch.ones(length, before + length, dtype=torch.bool, device=device).tril(before)
    return mask if window is None else mask.triu(before + 1 - window)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    starts: list[int],
    of_keys: list[int],
    scaling: float | None,
    window: int | None,
) -> Tensor:
    """query [1, H, N, D], key and value [1, K, M, D], sinks [H] -> [1, N, H, D], with gradients.

    `starts` are those of the stretches, and N; `of_keys` those of their keys, and M: where these
    are more, the tokens are the last of them. A token sees `window` tokens, itself included.
    """
    result: Tensor = _Attend.apply(query, key, value, sinks, starts, of_keys, scaling, window)
    return result


class _Attend(torch.autograd.Function):
    """All stretches write into one output and one gradient: a piece of the graph for each would
    hold every output twice and concatenate in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        sinks: Tensor | None,
        *options: Any,
    ) -> Tensor:
        result, sums = _forward(query, key, value, sinks, *options)
        ctx.save_for_backward(query, key, value, result, sums, sinks)
        ctx.options = options
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients, of_sinks = _backward(grads[0], *ctx.saved_tensors, *ctx.options)
        return *gradients, of_sinks, None, None, None, None


def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    starts: list[int],
    of_keys: list[int],
    scaling: float | None,
    window: int | None,
) -> tuple[Tensor, Tensor]:
    """Output [1, N, H, D] and the logarithms of the summed exponentials [1, H, N]."""
    result, sums = _empty(query)
    out = result.transpose(1, 2)
    for (start, end), (first, last) in zip(pairwise(starts), pairwise(of_keys), strict=True):
        q, k, v = query[:, :, start:end], key[:, :, first:last], value[:, :, first:last]
        mask = _additive_window(q, k, window)
        piece, logsumexp = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q, k, v, 0.0, mask is None, attn_mask=mask, scale=scaling
        )
        if sinks is not None:
            own = sinks.to(sums.dtype).view(1, -1, 1)
            piece = piece * torch.sigmoid(logsumexp - own).unsqueeze(-1).to(piece.dtype)
            logsumexp = torch.logaddexp(logsumexp, own)
        out[:, :, start:end] = piece
        sums[:, :, start:end] = logsumexp
    return result, sums


def _empty(query: Tensor) -> tuple[Tensor, Tensor]:
    rows, heads, tokens, width = query.shape
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    result = query.new_empty(rows, tokens, heads, width)
    return result, query.new_empty(rows, heads, tokens, dtype=exact)


def _backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    result: Tensor,
    sums: Tensor,
    sinks: Tensor | None,
    starts: list[int],
    of_keys: list[int],
    scaling: float | None,
    window: int | None,
) -> tuple[tuple[Tensor, ...], Tensor | None]:
    """Gradients of query, key and value, and of the sinks."""
    out, grad = result.transpose(1, 2), grad.transpose(1, 2)
    gradients = tuple(torch.empty_like(x) for x in (query, key, value))
    for (start, end), (first, last) in zip(pairwise(starts), pairwise(of_keys), strict=True):
        part = (slice(None), slice(None), slice(start, end))
        theirs = (slice(None), slice(None), slice(first, last))
        q, k, v = query[part], key[theirs], value[theirs]
        mask = _additive_window(q, k, window)
        pieces = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            *(grad[part], q, k, v, out[part], sums[part], 0.0, mask is None),
            attn_mask=mask,
            scale=scaling,
        )
        for gradient, piece, place in zip(gradients, pieces, (part, theirs, theirs), strict=True):
            gradient[place] = piece
    if sinks is None:
        return gradients, None
    share = torch.exp(sinks.to(sums.dtype).view(1, -1, 1) - sums)
    return gradients, -(share * (grad * out).sum(-1)).sum((0, 2)).to(sinks.dtype)


def _additive_window(query: Tensor, key: Tensor, window: int | None) -> Tensor | None:
    """What the CPU kernel adds to scores of a stretch longer than `window`, or with more keys than
    tokens; None for others."""
    length, count = query.shape[2], key.shape[2]
    if count == length and (window is None or length <= window):
        return None
    mask = window_mask(length, window, query.device, count - length)
    zeros = query.new_zeros(length, count)
    return zeros.masked_fill_(~mask, -torch.inf)


# ---- the same as operators, whose stretches are a tensor


@torch.library.custom_op("launcher::packed_attention", mutates_args=())
def packed(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    starts: Tensor,
    scaling: float | None,
    window: int | None,
    chunk: int | None,
) -> tuple[Tensor, Tensor]:
    """What `attend` gives for documents that begin at `starts`, int32 [documents + 1], and are cut
    every `chunk` tokens; and the logarithms of the summed exponentials [1, H, N], without
    gradients."""
    cuts = cut(starts.tolist(), chunk)
    return _forward(query, key, value, sinks, cuts, cuts, scaling, window)


@packed.register_fake
def _(query: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return _empty(query)


@torch.library.custom_op("launcher::packed_attention_backward", mutates_args=())
def _packed_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    result: Tensor,
    sums: Tensor,
    sinks: Tensor | None,
    starts: Tensor,
    scaling: float | None,
    window: int | None,
    chunk: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cuts = cut(starts.tolist(), chunk)
    (of_query, of_key, of_value), of_sinks = _backward(
        grad, query, key, value, result, sums, sinks, cuts, cuts, scaling, window
    )
    return of_query, of_key, of_value, query.new_empty(0) if of_sinks is None else of_sinks


@_packed_backward.register_fake
def _(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    result: Tensor,
    sums: Tensor,
    sinks: Tensor | None,
    *others: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    of_sinks = query.new_empty(0) if sinks is None else torch.empty_like(sinks)
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value), of_sinks


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    query, key, value, sinks, starts, *ctx.options = inputs
    ctx.save_for_backward(query, key, value, *output, sinks, starts)


def _differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    *gradients, of_sinks = _packed_backward(grads[0], *ctx.saved_tensors, *ctx.options)
    of_sinks = of_sinks if ctx.needs_input_grad[3] else None
    return *gradients, of_sinks, None, None, None, None


packed.register_autograd(_differentiate, setup_context=_keep)
