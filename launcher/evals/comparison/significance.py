"""How sure a difference is: p-values, their correction over metrics, effect and sample size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from launcher.evals.metric import Floats

#: Standard normal quantiles of a two-sided test at 5 % and of a power of 80 %.
_Z_LEVEL, _Z_POWER = 1.959964, 0.841621


def mcnemar(improved: int, worsened: int) -> float:
    """Exact two-sided p-value of McNemar's test (1947): is one direction as likely as the other?

    Under the null, each record that changed did so in either direction with probability 1/2.
    """
    changed, fewer = improved + worsened, min(improved, worsened)
    if improved == worsened:
        return 1.0
    logs = [
        math.lgamma(changed + 1) - math.lgamma(k + 1) - math.lgamma(changed - k + 1)
        for k in range(fewer + 1)
    ]
    tail = math.fsum(math.exp(log - changed * math.log(2)) for log in logs)
    return min(1.0, 2 * tail)


def bootstrap(differences: Floats) -> float:
    """Two-sided p-value from resampled differences: how often they reach 0 or the other side.

    Where none does, resamples cannot tell how small it is: then the tail of a normal distribution
    with their mean and deviation, if it is smaller.
    """
    kept = differences[np.isfinite(differences)]
    if not len(kept):
        return 1.0
    side = min(int((kept <= 0).sum()), int((kept >= 0).sum()))
    p_value = min(1.0, 2 * (side + 1) / (len(kept) + 1))
    if side == 0 and (deviation := float(kept.std())):
        return min(p_value, math.erfc(abs(float(kept.mean())) / deviation / math.sqrt(2)))
    return p_value


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of several tests (Holm 1979): at 5 %, one false alarm in 20 families."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def unseen(records: int) -> float:
    """The largest share of all that none of so many records may come from: the upper end of the
    exact 95 % interval (Clopper and Pearson 1934)."""
    return 1.0 - float(0.025 ** (1.0 / records))


def effect_size(gains: Floats) -> float | None:
    """Cohen's d of paired gains: their mean in standard deviations; None if they do not vary."""
    kept = gains[np.isfinite(gains)]
    if len(kept) < 2 or not (deviation := float(kept.std(ddof=1))):
        return None
    return float(kept.mean()) / deviation


def records_needed(records: int, difference: float, differences: Floats) -> int | None:
    """Records at which a true difference of this size would be seen four times in five.

    The standard error, taken from the resampled `differences`, falls with the root of the records.
    None if there is no difference, or nothing is known of its error.
    """
    kept = differences[np.isfinite(differences)]
    if not len(kept) or not difference or not math.isfinite(difference):
        return None
    error = float(kept.std())
    wanted = records * ((_Z_LEVEL + _Z_POWER) * error / difference) ** 2
    return max(1, math.ceil(wanted)) if wanted < 1e12 else None
