"""What is trained of a model as it was when training began, put back for as long as it is asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn


class FormerWeights:
    """Holds a copy of the trained parameters of `model`, which may then be put under an engine, at
    any ZeRO stage. Every rank has one, and all call its methods together."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [own for own in model.parameters() if own.requires_grad]
        with self._gathered(writes=False):
            self._values = [own.detach().clone() for own in self._parameters]

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The model is what it was; what it has learned is there again afterwards, to the bit."""
        learned = self._put(self._values)
        try:
            yield
        finally:
            self._put(learned)

    @torch.no_grad()
    def _put(self, values: list[Tensor]) -> list[Tensor]:
        """What was there before; nothing where another rank writes for all."""
        is_cut = self._is_cut
        with self._gathered(writes=True):
            if is_cut and torch.distributed.get_rank():
                return []
            before = [own.detach().clone() for own in self._parameters]
            for own, value in zip(self._parameters, values, strict=True):
                own.copy_(value)
        return before

    @property
    def _is_cut(self) -> bool:
        return any(hasattr(own, "ds_id") for own in self._parameters)

    def _gathered(self, *, writes: bool) -> AbstractContextManager[Any]:
        """The parameters are whole within it; with `writes` those of rank 0 hold after it."""
        if not self._is_cut:
            return nullcontext()
        import deepspeed

        rank = 0 if writes else None
        whole: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
            self._parameters, modifier_rank=rank
        )
        return whole
