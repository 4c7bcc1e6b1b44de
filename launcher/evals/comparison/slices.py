"""Comparison of two models on parts of the records, such as those of one source or length."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from launcher.evals.comparison import paired
from launcher.evals.metric import Metric
from launcher.evals.records import Results

#: Fewer records make a slice too small to be judged.
MIN_RECORDS = 30
#: Slices of a kind that are shown, the largest.
MOST = 20

#: Kind of slice -> its name -> ids of its records.
Groups = Mapping[str, Mapping[str, Collection[int]]]


def compare_slices(
    base: Results,
    tuned: Results,
    metrics: Sequence[Metric[Any]],
    groups: Groups,
    resampling: paired.Resampling = paired.UNSEEDED,
) -> list[dict[str, Any]]:
    """The comparison within each slice: `by`, `value`, `records`, `metrics` as of `compare`.

    p-values are corrected over all slices and metrics together, so that the one slice in twenty
    that differs by chance is not called better. A metric of less than `MIN_RECORDS` is left out.
    Kinds with one slice only say nothing and are left out.
    """
    found: list[dict[str, Any]] = []
    for kind, parts in groups.items():
        largest = sorted(parts.items(), key=lambda part: -len(part[1]))[:MOST]
        kept = dict(largest)
        for name, ids in parts.items() if len(parts) > 1 else ():
            if name not in kept:
                continue
            rows: dict[str, Any] = {}
            if len(ids) >= MIN_RECORDS:
                sides = base.of(ids), tuned.of(ids)
                made = paired.measure(*sides, metrics, resampling)
                rows = {name: row for name, row in made.items() if row["records"] >= MIN_RECORDS}
            found.append({"by": kind, "value": name, "records": len(ids), "metrics": rows})
    paired.judge([row for part in found for row in part["metrics"].values()])
    return found


def by_length(lengths: Mapping[int, int]) -> dict[str, list[int]]:
    """Four slices of about equal size, short records to long: name -> ids; `lengths` in tokens."""
    values = np.array(list(lengths.values()))
    if len(values) == 0:
        return {}
    ends = sorted(
        {int(end) for end in np.quantile(values, [0.25, 0.5, 0.75, 1.0], method="higher")}
    )
    first, parts = int(values.min()), {}
    for end in ends:
        ids = [i for i, length in lengths.items() if first <= length <= end]
        span = f"{first:,} to {end:,}" if first < end else f"{end:,}"
        parts[f"{span} tokens"] = ids
        first = end + 1
    return parts
