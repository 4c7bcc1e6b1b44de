"""Cross entropy of the targets, mixed with a divergence from the teacher there."""

from __future__ import annotations

import torch
from torch import Tensor

from launcher.model.divergence import Teacher
from launcher.model.target_logits import loss_and_gradient


class Mixture:
    """(1 - share) x cross entropy + share x T^2 x divergence, T the temperature at which the
    divergence is measured; a `launcher.model.target_logits.Criterion`.

    A gradient of the divergence falls with T^2 (Hinton et al. 2015), so both keep their parts.
    """

    def __init__(
        self,
        targets: Tensor,
        weights: Tensor | None,
        teacher: Teacher,
        *,
        share: float,
        temperature: float,
    ) -> None:
        self._targets, self._weights, self._teacher = targets, weights, teacher
        self._shares = 1 - share, share * temperature**2
        self._sums: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def sums(self) -> tuple[Tensor, Tensor]:
        """Cross entropy and divergence, summed over the targets with their weights: fp32 scalars,
        once the head has gone through them."""
        zero = self._targets.new_zeros((), dtype=torch.float32)
        parts = (zero, *(one for one, _ in self._sums.values()))
        others = (zero, *(other for _, other in self._sums.values()))
        return torch.stack(parts).sum(), torch.stack(others).sum()

    def __call__(self, logits: Tensor, part: slice) -> tuple[Tensor, Tensor]:
        """See `launcher.model.target_logits.Criterion`."""
        weights = None if self._weights is None else self._weights[part]
        loss, gradient = loss_and_gradient(logits, self._targets[part], 0.0, weights)
        divergences, towards = self._teacher.against(logits, part)
        if weights is not None:
            divergences = divergences * weights
            towards *= weights.unsqueeze(1)
        divergence = divergences.sum()
        self._sums[part.start] = loss, divergence
        data, teacher = self._shares
        gradient.mul_(data).add_(towards, alpha=teacher)
        return data * loss + teacher * divergence, gradient
