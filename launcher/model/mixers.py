"""Layers that carry something along a row beside its attention, run once for each document.

Recurrent and state-space layers, linear attention and convolutions over tokens know no boundaries:
what they keep of one document would reach the next. Such a layer is given its documents one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from launcher.model.attention import BOUNDARIES, document_starts, packed_row


class Mixers:
    """The modules of a model that run once a document of a packed row, and as ever elsewhere."""

    def __init__(self) -> None:
        self._plain: list[tuple[nn.Module, Callable[..., Any]]] = []
        self.names: list[str] = []
        """Names of their classes, in the order in which they were added."""

    def add(self, model: nn.Module, kinds: Iterable[type[nn.Module]]) -> None:
        """Let all modules of these classes run once a document."""
        chosen = set(kinds)
        self.names += sorted(kind.__name__ for kind in chosen)
        for module in model.modules():
            if type(module) in chosen:
                self._plain.append((module, module.forward))
                module.forward = _by_document(module.forward)

    def are_gathered_whole(self, model: nn.Module) -> bool:
        """Whether ZeRO-3, if it has partitioned `model`, gathers them as often on every rank: those
        in a layer that is gathered as one. Of others each part would be gathered once a document.
        """
        if not any(hasattr(parameter, "ds_id") for parameter in model.parameters()):
            return True
        from deepspeed.utils import z3_leaf_module

        leaves = (module for module in model.modules() if z3_leaf_module(module))
        inside = {id(module) for leaf in leaves for module in leaf.modules()}
        return all(id(module) in inside for module, _ in self._plain)

    def undo(self) -> None:
        """Let all modules run as they did."""
        for module, forward in reversed(self._plain):
            module.forward = forward
        self._plain, self.names = [], []


def _by_document(plain: Callable[..., Any]) -> Callable[..., Any]:
    @torch.compiler.disable
    def forward(*args: Any, **kwargs: Any) -> Any:
        starts = document_starts()
        if starts is None or len(starts) == 2:
            return plain(*args, **kwargs)
        kwargs = {name: value for name, value in kwargs.items() if name not in BOUNDARIES}
        bounds = starts.tolist()
        outputs = []
        for start, end in pairwise(bounds):
            with packed_row(starts.new_tensor([0, end - start])):
                inputs = part((args, kwargs), bounds[-1], start, end)
                outputs.append(plain(*inputs[0], **inputs[1]))
        return _joined(outputs, [end - start for start, end in pairwise(bounds)])

    return forward


def part(value: Any, total: int, start: int, end: int, name: str = "") -> Any:
    """Tokens [start, end) of everything in `value` that has one entry for each of the row's `total`
    tokens; the rest as it is. `name` is that of the argument that it is."""
    if isinstance(value, Tensor):
        is_mask = value.dtype == torch.bool or "mask" in name
        for dim in _token_dims(value.shape, total, is_mask):
            value = value.narrow(dim, start, end - start)
        return value
    if isinstance(value, dict):
        return {key: part(one, total, start, end, key) for key, one in value.items()}
    if type(value) in (tuple, list):
        return type(value)(part(one, total, start, end, name) for one in value)
    return value


def tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in `value`, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from tensors(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from tensors(one)


def _token_dims(shape: torch.Size, total: int, is_mask: bool = False) -> list[int]:
    """The dimensions that count tokens: of [batch, tokens, ...] the second, of [batch, heads,
    tokens, width] the third, of a mask [batch, heads, tokens, tokens] both; a width of the same
    size is none."""
    sized = [dim for dim, size in enumerate(shape) if size == total]
    if is_mask and len(shape) == 4 and sized[-2:] == [2, 3] and 1 not in sized:
        return [2, 3]
    return [1] if 1 in sized else sized[:1]


def _joined(outputs: list[Any], lengths: list[int]) -> Any:
    """The documents' outputs one behind the other."""
    first = outputs[0]
    if isinstance(first, Tensor):
        dims = _token_dims(first.shape, lengths[0])
        return torch.cat(outputs, dim=dims[0]) if dims else first
    if isinstance(first, tuple):
        return tuple(_joined(list(each), lengths) for each in zip(*outputs, strict=True))
    return first
