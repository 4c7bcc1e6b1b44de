"""The most memory that work on tensors holds at a time, on any device: what operations return is
counted as long as it lives."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Counter(TorchDispatchMode):
    """Bytes of the storages that operations have made and that still live."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = self._now = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = {
            leaf.untyped_storage()._cdata
            for leaf in tree_leaves((args, kwargs))
            if isinstance(leaf, torch.Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in given and storage not in self._seen:
                    self._seen.add(storage)
                    self._now += storage.nbytes()
                    weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self._now)
        return result

    def _free(self, size: int) -> None:
        self._now -= size


def peak_bytes(work: Callable[[], object]) -> int:
    """Most bytes that `work` holds in tensors beyond those that it was given."""
    with _Counter() as counter:
        work()
    return counter.peak
