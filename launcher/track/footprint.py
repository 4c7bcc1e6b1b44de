"""What a rank holds at most in a step: the measured counterpart of the plan's estimate.

On CUDA it is the most that torch has allocated. On CPU it is the most that tensors take at a time,
which is counted operation by operation: what a process holds resident is that and its libraries,
and what the heap keeps of small tensors. docs/performance.md compares both with the plan.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Counter(TorchDispatchMode):
    """Counts the bytes of the storages that operations make while it is entered, as long as they
    live. Operations of compiled code are not seen."""

    supports_higher_order_operators = True
    """Operations on functions, such as flex attention, may run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.peak: int | None = 0
        """Most bytes held at a time, beyond what there was before; None where a tensor without a
        storage of its own was met."""
        self._now = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run the operation and count what it returns."""
        result = func(*args, **(kwargs or {}))
        if self.peak is not None:
            try:
                self._count((args, kwargs), result)
            except (RuntimeError, NotImplementedError):  # training goes on without the number
                self.peak = None
        return result

    def _count(self, inputs: Any, result: Any) -> None:
        assert self.peak is not None
        tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)]
        given = {tensor.untyped_storage()._cdata for tensor in tensors}
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                storage = leaf.untyped_storage()
                if storage._cdata not in given and storage not in self._seen:
                    self._seen.add(storage)
                    self._now += storage.nbytes()
                    weakref.finalize(storage, self._free, storage.nbytes())
        self.peak = max(self.peak, self._now)

    def _free(self, size: int) -> None:
        self._now -= size


class Footprint:
    """The most that this rank holds between `start` and `stop`, which lie around a step's work."""

    def __init__(self, device: str) -> None:
        """`device` is "cpu" or "cuda"."""
        self._device = device
        self._counter: Counter | None = None
        self._held: dict[str, int] = {}
        self._most = 0

    def start(self, held: Mapping[str, int]) -> None:
        """`held` is what tensors take now, by use: what outlasts a step."""
        self._held = dict(held)
        if self._device == "cuda":
            # The peak of the process, which the log tells, must not be lost.
            self._most = max(self._most, torch.cuda.max_memory_allocated())
            torch.cuda.reset_peak_memory_stats()
        else:
            self._counter = Counter()
            self._counter.__enter__()

    def stop(self) -> dict[str, int]:
        """`held`, and `peak`: the most bytes at a time, with what was held before; without it where
        it could not be counted."""
        if self._counter is None:
            return {**self._held, "peak": int(torch.cuda.max_memory_allocated())}
        self._counter.__exit__(None, None, None)
        more, self._counter = self._counter.peak, None
        if more is None:
            return self._held
        return {**self._held, "peak": sum(self._held.values()) + more}
