"""The threshold below which a text is out of scope, chosen so that no record judges itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.objectives.classify.records import ClassRecord


def of_run(run: RunDir, base: bool = False) -> float | None:
    """The threshold that the run's evaluation has chosen for use; None if there is none."""
    found = read_json(run.eval / ("base.json" if base else "tuned.json"), {}).get("threshold")
    return None if found is None else float(found)


def judge(records: Sequence[ClassRecord]) -> tuple[list[ClassRecord], float]:
    """Reject records by cross-fitted thresholds; also the threshold that all of them choose.

    Records in scope and out of it are dealt in turn to two halves, and each half is judged by the
    threshold that the other one chooses: what is measured is a threshold on records that had no
    part in it. The one for use, chosen on all of them, is not measured itself.
    """
    halves = _halves(records)
    chosen = [choose(half) for half in halves]
    judged = [
        record
        for half, threshold in zip(halves, reversed(chosen), strict=True)
        for record in reject(half, threshold)
    ]
    return sorted(judged, key=lambda record: record.id), choose(records)


def reject(records: Sequence[ClassRecord], threshold: float) -> list[ClassRecord]:
    """The records as a threshold judges them that was chosen on others."""
    return [replace(record, rejected=record.probability < threshold) for record in records]


def choose(records: Sequence[ClassRecord]) -> float:
    """The threshold with the most records judged right, out of scope counted as a class.

    That is the criterion of Larson et al. (2019). Halfway between two probabilities; of equally
    good ones the lowest, and one above 1 rejects everything. 0 without records; probabilities that
    are no numbers are left out.
    """
    usable = (record for record in records if math.isfinite(record.probability))
    ordered = sorted(usable, key=lambda record: record.probability)
    values = [0.0, *(record.probability for record in ordered), 2.0]
    outside = np.array([record.is_outside for record in ordered], dtype=np.int64)
    right = np.array([record.truth == record.predicted for record in ordered], dtype=np.int64)
    # With the first k rejected: those of them that are outside, and the right ones of the rest.
    correct = np.concatenate([[0], np.cumsum(outside)]) + right.sum()
    correct[1:] -= np.cumsum(right)
    # Equal probabilities cannot be told apart: no threshold lies between them.
    cuts = [
        k for k in range(len(values) - 1) if k in (0, len(ordered)) or values[k] < values[k + 1]
    ]
    best = max(cuts, key=lambda k: (correct[k], -k))
    return 0.0 if best == 0 else (values[best] + values[best + 1]) / 2


def _halves(records: Sequence[ClassRecord]) -> tuple[list[ClassRecord], list[ClassRecord]]:
    first: list[ClassRecord] = []
    second: list[ClassRecord] = []
    for outside in (False, True):
        own = sorted((r for r in records if r.is_outside is outside), key=lambda r: r.id)
        first += own[::2]
        second += own[1::2]
    return first, second
