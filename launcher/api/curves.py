"""Curves of jobs, as the page draws them: metrics.jsonl of their runs, read as it grows."""

from __future__ import annotations

import json
import math
import os
import threading
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.api import records
from launcher.rundir import RunDir

#: Kind of a record -> what is drawn of it.
COLUMNS = {
    "train": ("loss", "token_accuracy", "lr"),
    "eval": ("eval/loss", "eval/token_accuracy"),
}
#: Points of a line that a page is sent; of longer ones it gets the lowest and highest of each part.
MOST = 2000
_REMEMBERED = 16
_DIGITS = 6
_SPARK, _SPARK_BYTES = 32, 256 << 10

#: A step and its numbers; None for what was not measured.
Point = tuple[float | None, ...]


class _Line:
    """Points in the order of their steps, 8 bytes a number."""

    def __init__(self, width: int) -> None:
        self.steps: array[int] = array("q")
        self.columns = [array("d") for _ in range(width)]

    def add(self, step: int, numbers: Sequence[float]) -> None:
        """What was measured at a step; a run that goes on from a checkpoint makes steps again."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            for column in self.columns:
                column.pop()
        self.steps.append(step)
        for column, number in zip(self.columns, numbers, strict=True):
            column.append(number)

    def points(self, first: int, last: int, most: int) -> tuple[list[Point], bool]:
        """Those of a range of steps, at most about `most`, and whether some were left out."""
        low, high = bisect_left(self.steps, first), bisect_left(self.steps, last + 1)
        chosen = _chosen(self.columns[0], low, high, most)
        return [self._point(i) for i in chosen], len(chosen) < high - low

    def _point(self, i: int) -> Point:
        return (self.steps[i], *(_rounded(column[i]) for column in self.columns))


class _Curve:
    """What has been read of a run's file."""

    def __init__(self, attempt: int) -> None:
        self.attempt, self.position = attempt, 0
        self.lines = {kind: _Line(len(names)) for kind, names in COLUMNS.items()}

    def read_on(self, path: Path) -> None:
        """Add what is new."""
        for raw, _, end in records.lines(path, self.position):
            self.position = end
            kind = str(raw.get("kind"))
            if kind in COLUMNS:
                self.lines[kind].add(raw["step"], [_number(raw.get(n)) for n in COLUMNS[kind]])


class Curves:
    """Curves of the runs looked at last. Safe to use from several threads."""

    def __init__(self) -> None:
        self._curves: OrderedDict[Path, _Curve] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, run: RunDir, first: int, last: int, most: int = MOST) -> dict[str, Any]:
        """Points of steps `first` to `last` as `COLUMNS` says: of training and of validation.

        Whoever adds them to what he has looks at `attempt` first: with another, all is new.
        """
        attempt = run.status().attempt
        with self._lock:
            curve = self._curves.pop(run.path, None)
            # An attempt may have written the file anew.
            if not curve or curve.attempt != attempt or _size(run.metrics) < curve.position:
                curve = _Curve(attempt)
            self._curves[run.path] = curve
            if len(self._curves) > _REMEMBERED:
                self._curves.popitem(last=False)
            curve.read_on(run.metrics)
            found = {kind: line.points(first, last, most) for kind, line in curve.lines.items()}
        return {
            "attempt": attempt,
            "train": found["train"][0],
            "valid": found["eval"][0],
            "is_thinned": any(is_thinned for _, is_thinned in found.values()),
        }


def spark(path: Path) -> list[list[float]]:
    """A few points of the training loss, step and loss; reads little of a long file."""
    size = _size(path)
    if size <= _SPARK_BYTES:
        raws = [raw for raw, _, _ in records.lines(path, 0)]
    else:
        raws = [_line_at(path, size * part // _SPARK) for part in range(_SPARK)]
    line = _Line(1)
    for raw in raws:
        if raw.get("kind") == "train":
            line.add(raw["step"], [_number(raw.get("loss"))])
    points, _ = line.points(0, 1 << 62, _SPARK)
    return [[step, loss] for step, loss in points if step is not None and loss is not None]


def _line_at(path: Path, position: int) -> dict[str, Any]:
    """The first whole training record behind a byte; empty if there is none soon."""
    with open(path, "rb") as file:
        file.seek(position)
        rest = file.read(16 << 10).split(b"\n")
    for line in rest[0 if position == 0 else 1 : -1]:
        try:
            raw = json.loads(line)
        except ValueError:
            continue
        if isinstance(raw, dict) and raw.get("kind") == "train" and isinstance(raw["step"], int):
            return raw
    return {}


def _chosen(values: Sequence[float], low: int, high: int, most: int) -> Sequence[int]:
    """Indices from `low` to `high`; if they are too many, each part's lowest and highest."""
    if high - low <= most:
        return range(low, high)
    parts, found = most // 2, {low, high - 1}
    for part in range(parts):
        begin, end = (low + (high - low) * k // parts for k in (part, part + 1))
        known = [i for i in range(begin, end) if not math.isnan(values[i])]
        found |= (
            {min(known, key=values.__getitem__), max(known, key=values.__getitem__)}
            if known
            else {begin}
        )
    return sorted(found)


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _number(value: Any) -> float:
    """NaN for what is no number; a file has NaN as text."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def _rounded(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
