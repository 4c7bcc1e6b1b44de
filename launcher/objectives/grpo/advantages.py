"""From scores to advantages, over the whole rollout.

reward      score less the penalty of a long answer (`soft_penalty`)
baseline    mean reward of the answers in the group; with `loss=rloo` of the other ones; with
            `loss=reinforce` of all answers where `advantage=batch`, else 0
advantage   (reward - baseline) / (deviation + 1e-4), the deviation that of the rewards in the group
            or in the batch, with one degree of freedom less; 1 where `advantage=none`

Answers without a score have no part in any of it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from launcher.config.schema.reinforce import Advantage, GrpoConfig, PolicyLoss

#: Added to a deviation.
EPSILON = 1e-4
#: Rewards that differ by less are the same.
SPREAD = 1e-9

Floats = NDArray[np.float64]


def penalties(lengths: NDArray[np.int64], options: GrpoConfig) -> Floats:
    """What the length of each answer [answers] adds to its score: 0 down to -1 (DAPO, Yu et al.
    2025, arXiv:2503.14476, eq. 13)."""
    zone = options.soft_penalty
    if zone is None:
        return np.zeros(len(lengths))
    over = lengths - (options.max_new_tokens - zone)
    return -np.clip(over / zone, 0.0, 1.0)


def advantages(rewards: Floats, options: GrpoConfig) -> Floats:
    """Those of rewards [groups, answers], NaN where there is none; of these and of answers that
    have nobody to be compared with they are 0."""
    known = np.isfinite(rewards)
    values = np.where(known, rewards, 0.0)
    counts = known.sum(1, keepdims=True)
    sums = values.sum(1, keepdims=True)
    means = sums / np.maximum(counts, 1)
    compared = known & (counts > 1)
    divisor = 1.0
    if options.loss is PolicyLoss.reinforce:
        mean = values.sum() / max(1, known.sum())
        baseline = np.full_like(values, mean if _by_batch(options) else 0.0)
        compared = known
        if _by_batch(options):
            divisor = _deviation(rewards[known]) + EPSILON
    else:
        baseline = np.broadcast_to(means, values.shape)
        if options.loss is PolicyLoss.rloo:
            baseline = (sums - values) / np.maximum(counts - 1, 1)
        if options.normalization is Advantage.group:
            squares = np.where(known, (values - means) ** 2, 0.0).sum(1, keepdims=True)
            divisor = np.sqrt(squares / np.maximum(counts - 1, 1)) + EPSILON
        elif _by_batch(options):
            divisor = _deviation(rewards[known]) + EPSILON
    found = np.where(compared, (values - baseline) / divisor, 0.0)
    if options.loss is not PolicyLoss.reinforce:
        found[without_spread(rewards)] = 0.0  # and not what rounding leaves
    return found


def without_spread(rewards: Floats) -> NDArray[np.bool_]:
    """Which groups of rewards [groups, answers], NaN where there is none, say of no answer that it
    is better than another: bool [groups]."""
    known = np.isfinite(rewards)
    least = np.where(known, rewards, np.inf).min(1)
    most = np.where(known, rewards, -np.inf).max(1)
    found: NDArray[np.bool_] = ~(most - least > SPREAD)
    return found


def _by_batch(options: GrpoConfig) -> bool:
    return options.normalization is Advantage.batch


def _deviation(rewards: Floats) -> float:
    return float(rewards.std(ddof=1)) if len(rewards) > 1 else 0.0
