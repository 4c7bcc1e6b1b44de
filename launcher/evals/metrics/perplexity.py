"""Perplexity."""

from __future__ import annotations

import numpy as np

from launcher.evals.metric import Floats
from launcher.evals.metrics.loss import Loss


class Perplexity(Loss):
    """exp of the mean cross entropy per target token (not a mean of records' perplexities)."""

    name = "perplexity"

    def transform(self, ratio: Floats) -> Floats:
        """exp, elementwise; a loss too large for it gives infinity."""
        perplexity: Floats = np.exp(ratio)
        return perplexity
