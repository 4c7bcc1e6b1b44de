"""Paired comparison of two models on the same records: difference, 95 % interval, verdict."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np

from launcher.core.errors import DataError
from launcher.evals.comparison import significance
from launcher.evals.metric import Floats, Metric
from launcher.evals.records import Results
from launcher.report.summary import table as table

CONFIDENCE = 0.95
#: Fewer records that differ prove nothing: even if all agree, a sign test gives 2 * 0.5**5 > 5 %.
MIN_DIFFERING = 6
#: Largest number of resampled counts held at once (float64).
CHUNK = 1_000_000


@dataclass(frozen=True, slots=True)
class Resampling:
    """Records drawn with replacement, as many as there are, to see what chance alone does."""

    seed: int = 0
    """That of the run: whoever compares its results draws the same records."""
    count: int = 5000
    """How often the records are drawn."""
    sign_of_life: Callable[[], object] = lambda: None
    """Called every now and then, as drawing from many records takes minutes."""

    def sums(self, columns: Floats) -> Floats:
        """Column sums [count, K] of `columns` [records, K] over the records of each draw."""
        num_records = len(columns)
        rng = np.random.default_rng(self.seed)
        sums = np.empty((self.count, columns.shape[1]))
        chunk = max(1, CHUNK // num_records)
        for start in range(0, self.count, chunk):
            self.sign_of_life()
            size = min(chunk, self.count - start)
            drawn = rng.integers(0, num_records, (size, num_records))
            drawn += np.arange(size)[:, None] * num_records
            counts = np.bincount(drawn.ravel(), minlength=size * num_records)
            counts = counts.reshape(size, num_records).astype(np.float64)
            sums[start : start + size] = counts @ columns
        return sums


#: For comparisons that belong to no run.
UNSEEDED = Resampling()


class Verdict(Enum):
    """What the data says about the tuned model."""

    better = "better"
    worse = "worse"
    no_evidence = "no evidence"


def compare(
    base: Results,
    tuned: Results,
    metrics: Sequence[Metric[Any]],
    resampling: Resampling = UNSEEDED,
) -> dict[str, Any]:
    """Compare `tuned` with `base`, metric by metric, by a paired bootstrap over records.

    Metrics whose pass was made for neither model are left out. The result is plain JSON: `metrics`
    maps each name to base, tuned, difference (tuned - base), interval, p_value (exact McNemar for
    right or wrong, else bootstrap), p_adjusted (Holm over the metrics), effect (Cohen's d of the
    records' gains), verdict, records, needed (records that would decide a difference of this size;
    None if it is decided or there is none), improved, worsened, higher_is_better, unit, needs,
    leads, decides; `notes` are sentences on both; numbers that are not finite are None.

    Raises `DataError` if the two models were not scored on the same records and the same target
    tokens or references.
    """
    rows = measure(base, tuned, metrics, resampling)
    judge(list(rows.values()))
    notes = [note for metric in metrics for note in metric.notes()]
    return {
        "metrics": rows,
        "notes": _cut(base, tuned) + notes,
        "confidence": CONFIDENCE,
        "resamples": resampling.count,
        "seed": resampling.seed,
    }


def _cut(base: Results, tuned: Results) -> list[str]:
    """How many answers were longer than they may be, where there are any."""
    sides = (("base", base), ("tuned", tuned))
    return [
        f"{side.cut()} of {len(side.generations)} answers of {name} reached eval.max_new_tokens"
        for name, side in sides
        if side.cut()
    ]


def measure(
    base: Results, tuned: Results, metrics: Sequence[Metric[Any]], resampling: Resampling
) -> dict[str, dict[str, Any]]:
    """The rows of `compare` without what depends on how many comparisons are made."""
    found: dict[str, dict[str, Any]] = {}
    for needs in dict.fromkeys(metric.needs for metric in metrics):
        chosen = [metric for metric in metrics if metric.needs == needs]
        if chosen and (chosen[0].select(base) or chosen[0].select(tuned)):
            a, b = _paired(chosen[0].select(base), chosen[0].select(tuned), needs)
            found.update(_compare_pass(a, b, chosen, resampling))
    return {metric.name: found[metric.name] for metric in metrics if metric.name in found}


def judge(rows: Sequence[dict[str, Any]]) -> None:
    """Add p_adjusted and verdict to the rows of one family of comparisons, and settle `needed`."""
    adjusted = significance.holm([row["p_value"] for row in rows])
    for row, p_value in zip(rows, adjusted, strict=True):
        row["p_adjusted"] = p_value
        verdict = _verdict(row)
        row["verdict"] = verdict.value
        row["needed"] = row["needed"] if verdict is Verdict.no_evidence else None


def _paired(base: Sequence[Any], tuned: Sequence[Any], what: str) -> tuple[list[Any], list[Any]]:
    """Both sides by id; `DataError` unless record by record the same thing was measured."""
    a, b = ({record.id: record for record in side} for side in (base, tuned))
    if a.keys() != b.keys():
        only = {"base": sorted(a.keys() - b.keys()), "tuned": sorted(b.keys() - a.keys())}
        found = "; ".join(
            f"{len(ids)} scored only for {side} (e.g. {', '.join(map(str, ids[:3]))})"
            for side, ids in only.items()
            if ids
        )
        raise DataError(
            f"base and tuned were not scored on the same records: {found}",
            where=f"{what} records",
            hint="evaluate both with the same data and the same eval.limit and eval.generate_limit",
        )
    ids = sorted(a)
    changed = [i for i in ids if a[i].task != b[i].task]
    if changed:
        raise DataError(
            f"{len(changed)} records had other targets for base than for tuned "
            f"(e.g. {', '.join(map(str, changed[:3]))})",
            where=f"{what} records",
            hint="evaluate both with the same tokenizer, chat template and data",
        )
    return [a[i] for i in ids], [b[i] for i in ids]


def _compare_pass(
    base: list[Any], tuned: list[Any], metrics: Sequence[Metric[Any]], resampling: Resampling
) -> dict[str, dict[str, Any]]:
    """Compare metrics of one pass; all of them see the same resampled records."""
    pairs = [metric.paired(base, tuned) for metric in metrics]
    columns = np.concatenate([side for pair in pairs for side in pair], axis=1)
    sums = resampling.sums(columns)
    rows, first = {}, 0
    for metric, (one, other) in zip(metrics, pairs, strict=True):
        middle, last = first + one.shape[1], first + one.shape[1] + other.shape[1]
        rows[metric.name] = _row(
            metric, (one, other), (sums[:, first:middle], sums[:, middle:last])
        )
        first = last
    return rows


def _row(
    metric: Metric[Any], sides: tuple[Floats, Floats], sums: tuple[Floats, Floats]
) -> dict[str, Any]:
    """One metric's comparison from the statistics of base and tuned, and their resampled sums."""
    base, tuned = (float(metric.scores(side.sum(0, keepdims=True))[0]) for side in sides)
    each_base, each_tuned = (metric.each(side) for side in sides)
    sign = 1.0 if metric.higher_is_better else -1.0
    with np.errstate(invalid="ignore"):
        gains = sign * (each_tuned - each_base)
        differences = metric.scores(sums[1]) - metric.scores(sums[0])
    improved, worsened = int((gains > 0).sum()), int((gains < 0).sum())
    tail = 100 * (1 - CONFIDENCE) / 2
    interval: list[float | None] = [None, None]
    records = int(metric.counts(sides[0]).sum())
    if records > 1 and np.isfinite(differences).any():  # one record drawn anew is the same one
        low, high = np.percentile(differences[np.isfinite(differences)], [tail, 100 - tail])
        interval = [float(low), float(high)]
    binary = metric.binary
    return {
        "base": _finite(base),
        "tuned": _finite(tuned),
        "difference": _finite(tuned - base),
        "interval": interval,
        "p_value": significance.mcnemar(improved, worsened)
        if binary
        else significance.bootstrap(differences),
        "effect": significance.effect_size(gains),
        "records": records,
        "needed": significance.records_needed(records, tuned - base, differences),
        "improved": improved,
        "worsened": worsened,
        "higher_is_better": metric.higher_is_better,
        "unit": metric.unit,
        "needs": metric.needs,
        "leads": metric.leads,
        "decides": metric.decides,
    }


def _verdict(row: Mapping[str, Any]) -> Verdict:
    """Better or worse only if the interval lies on one side of 0 and chance is ruled out."""
    if row["base"] is not None and row["tuned"] is None:
        return Verdict.worse
    low, high = row["interval"]
    few = row["improved"] + row["worsened"] < MIN_DIFFERING
    if low is None or few or low <= 0 <= high or row["p_adjusted"] > 1 - CONFIDENCE:
        return Verdict.no_evidence
    return Verdict.better if (low > 0) is row["higher_is_better"] else Verdict.worse


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
