"""Comparison of two models beyond the held-out records: general sets, new ones, training records;
and `compare_all`, the whole comparison.

Nothing beyond the held-out records enters the verdict on them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from launcher.evals.comparison import paired
from launcher.evals.comparison.slices import MIN_RECORDS, Groups, compare_slices
from launcher.evals.judge import WinRate
from launcher.evals.metric import Floats, Metric
from launcher.evals.metrics.loss import Loss
from launcher.evals.records import LossRecord, Results

#: Name of the training records among the further sets; the model has seen them.
TRAIN = "train"


def compare_all(
    base: Results,
    tuned: Results,
    metrics: Sequence[Metric[Any]],
    groups: Groups,
    resampling: paired.Resampling,
) -> dict[str, Any]:
    """The comparison as of `paired.compare`, with `slices` and what `compare_further` gives.

    What a run writes at its end and what `launcher compare` makes of stored results is this.
    """
    made = paired.compare(base, tuned, metrics, resampling)
    made["slices"] = compare_slices(base, tuned, metrics, groups, resampling)
    return made | compare_further(base, tuned, metrics, resampling)


def compare_further(
    base: Results,
    tuned: Results,
    metrics: Sequence[Metric[Any]],
    resampling: paired.Resampling = paired.UNSEEDED,
) -> dict[str, Any]:
    """`further`: set -> comparison as of `paired.compare`, of the sets that both models have.

    p-values are corrected within each set. And `gap`, as of `compare_gap`.
    """
    # A judge is asked about the held-out records alone.
    metrics = [metric for metric in metrics if not isinstance(metric, WinRate)]
    shared = [name for name in base.further if name in tuned.further and name != TRAIN]
    return {
        "further": {
            name: paired.compare(base.further[name], tuned.further[name], metrics, resampling)
            for name in shared
        },
        "gap": compare_gap(base, tuned, metrics, resampling),
    }


def compare_gap(
    base: Results,
    tuned: Results,
    metrics: Sequence[Metric[Any]],
    resampling: paired.Resampling,
) -> dict[str, Any] | None:
    """How far held-out loss lies above the loss on training records, in nats, and its growth.

    `base` and `tuned` are the gaps, `difference` is the growth and `interval` its 95 % interval
    (held-out and training records resampled each for themselves); `verdict` is "worse" if all of it
    is above 0; `train` has the losses on the training records, `records` says how many these are.
    None unless both models have finite losses on the same training records, `MIN_RECORDS` at least.
    """
    loss = next((metric for metric in metrics if type(metric) is Loss), None)
    seen = [side.further.get(TRAIN, Results()).losses for side in (base, tuned)]
    ids = [[record.id for record in losses] for losses in seen]
    if loss is None or ids[0] != ids[1] or min(len(ids[0]), len(base.losses)) < MIN_RECORDS:
        return None
    trained = _draws(loss, seen, replace(resampling, seed=resampling.seed + 1))
    gaps = _draws(loss, [base.losses, tuned.losses], resampling) - trained
    if not np.isfinite(gaps).all():
        return None
    growth = gaps[:, 1] - gaps[:, 0]
    low, high = (float(end) for end in np.percentile(growth[1:], [2.5, 97.5]))
    return {
        "base": float(gaps[0, 0]),
        "tuned": float(gaps[0, 1]),
        "difference": float(growth[0]),
        "interval": [low, high],
        "verdict": "worse" if low > 0 else "better" if high < 0 else "no evidence",
        "train": trained[0].tolist(),
        "records": len(ids[0]),
    }


def _draws(
    loss: Loss, sides: Sequence[Sequence[LossRecord]], resampling: paired.Resampling
) -> Floats:
    """Losses of both models, [1 + count, 2]: over the records as they are, then resampled."""
    columns = np.concatenate([loss.statistics(side) for side in sides], axis=1)
    drawn = resampling.sums(columns)
    sums = np.concatenate([columns.sum(0, keepdims=True), drawn])
    return np.stack([loss.scores(sums[:, :2]), loss.scores(sums[:, 2:])], axis=1)
