"""Products of fp32 matrices on CPUs by oneDNN, which torch takes for narrower types alone.

By torch's own BLAS, MKL, the same products take a tenth to a sixth longer where there are many
rows, and a quarter where there are few and the weights have been laid out beforehand:
docs/performance.md has a table.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Most bytes of copies that pay: those of larger models take long themselves.
MOST_BYTES = 4 << 30

#: Where forwards come from that compute what `nn.Linear` does while nothing is learned.
_OURS = ("launcher.model.activations", "launcher.model.head")

_IS_BUILT_IN = torch.backends.mkldnn.is_available() and hasattr(
    torch.ops.mkldnn, "_linear_pointwise"
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [..., n] times the transpose of weight [m, n], plus bias [m]: [..., m]. Without gradients:
    call it in a forward or backward of one's own."""
    if not is_fast(x, weight, bias):
        return functional.linear(x, weight, bias)
    return _by_onednn(x, weight, bias)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a [k, n] times b [n, m], without gradients."""
    return linear(a, b.t())


def write(out: Tensor, a: Tensor, b: Tensor) -> None:
    """`product` of a and b into `out` [k, m]."""
    if is_fast(a, b):
        out.copy_(product(a, b))
    else:
        torch.mm(a, b, out=out)


def is_fast(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    """Whether `linear` of these is by oneDNN."""
    kinds = {x.dtype, weight.dtype} if bias is None else {x.dtype, weight.dtype, bias.dtype}
    return (
        _IS_BUILT_IN
        and kinds == {torch.float32}
        and weight.device.type == "cpu"
        and weight.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )


@contextmanager
def laid_out(model: nn.Module, most_bytes: int) -> Iterator[None]:
    """Within it, which is to be without gradients and changes of weights, the linear layers of
    `model` compute with copies of their weights that are laid out for few rows at a time.

    Layers whose weights are sharded, not fp32, not on a CPU, or that compute in a way of their own
    stay as they are; all of them do where the copies would take more than `most_bytes`.
    """
    layers = [own for own in model.modules() if isinstance(own, nn.Linear)]
    layers = [own for own in layers if _can_be_laid_out(own)]
    if sum(own.weight.nbytes for own in layers) > most_bytes:
        layers = []
    before = [vars(own).get("forward") for own in layers]
    copies: dict[int, Tensor] = {}  # some layers share one weight
    put: list[Any] = []
    try:
        for own in layers:
            weight = own.weight.detach()
            if id(own.weight) not in copies:
                copies[id(own.weight)] = torch.ops.mkldnn._reorder_linear_weight(weight)
            put.append(partial(_of_copy, copies[id(own.weight)], own.bias))
            vars(own)["forward"] = put[-1]
        yield
    finally:
        for own, forward, ours in zip(layers, before, put, strict=False):
            if vars(own).get("forward") is not ours:
                continue  # someone has put another meanwhile
            del vars(own)["forward"]
            if forward is not None:
                vars(own)["forward"] = forward


def _can_be_laid_out(module: nn.Linear) -> bool:
    if type(module) is not nn.Linear or not is_fast(module.weight, module.weight, module.bias):
        return False
    return _is_plain(vars(module).get("forward")) and module.weight.shape == (
        *(module.out_features, module.in_features),
    )


def _is_plain(forward: Any) -> bool:
    """Whether a layer's own forward, if it has one, computes what `nn.Linear` does."""
    if forward is None:
        return True
    # Not by the module alone: a wrapper says that it is of the module of what it wraps.
    own = forward.__func__ if isinstance(forward, MethodType) else None
    return own is nn.Linear.forward or getattr(own, "__module__", None) in _OURS


def _of_copy(weight: Tensor, bias: Tensor | None, input: Tensor) -> Tensor:
    return _by_onednn(input, weight, bias)


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if bias is not None:
        bias = bias.contiguous()  # it is read as if it were
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result
