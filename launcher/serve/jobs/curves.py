"""Curves of jobs, as the page draws them: metrics.jsonl of their runs, read as it grows."""

from __future__ import annotations

import json
import math
import os
import secrets
import threading
from array import array
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from launcher.core.rundir import RunDir
from launcher.serve.jobs.measurements import BEGIN, Place

#: Kind of a record -> what is drawn of it: of several names the first that it has, where one ends
#: with a colon any that begins so. What an accuracy is of follows from the method.
COLUMNS = {
    "train": (
        *(("loss",), ("token_accuracy", "preference_accuracy"), ("lr",)),
        *(("score",), ("grader_errors",)),
    ),
    "eval": (
        *(("eval/loss",), ("eval/token_accuracy", "eval/preference_accuracy")),
        ("eval/grader:",),
    ),
}
#: Points of a line that a page is sent; of longer ones it gets the lowest and highest of each part.
MOST = 2000
#: Curves, and points of all together, of some 50 bytes each.
_REMEMBERED, _REMEMBERED_POINTS = 64, 4_000_000
_DIGITS = 6
_SPARK, _SPARK_BYTES, _NEAR = 32, 256 << 10, 16 << 10

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
    """What has been read of a run's file, by one at a time. A run that goes on writes another in
    its place."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.begin()

    def begin(self) -> None:
        """Nothing has been read."""
        self.version, self.place = secrets.token_hex(8), BEGIN
        self.lines = {kind: _Line(len(names)) for kind, names in COLUMNS.items()}

    @property
    def points(self) -> int:
        """How many it holds."""
        return sum(len(line.steps) for line in self.lines.values())

    def read(self, path: Path) -> None:
        """Add what is new in the file."""
        try:
            file = open(path, "rb")  # noqa: SIM115 - closed below
        except FileNotFoundError:
            if self.place != BEGIN:
                self.begin()
            return
        with file:
            if Place.at(file, self.place.position) != self.place:
                self.begin()
            self._read_on(file)

    def _read_on(self, file: IO[bytes]) -> None:
        position = self.place.position
        file.seek(position)
        for line in file:
            if not line.endswith(b"\n"):
                break
            position += len(line)
            raw = _record(line)
            if raw is not None:
                kind = raw["kind"]
                self.lines[kind].add(raw["step"], [_first(raw, names) for names in COLUMNS[kind]])
        self.place = Place.at(file, position)


class Curves:
    """Curves of the runs looked at last. Safe to use from several threads, which wait for each
    other only at the same run."""

    def __init__(self) -> None:
        self._curves: OrderedDict[Path, _Curve] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, run: RunDir, first: int, last: int, most: int = MOST) -> dict[str, Any]:
        """Points of steps `first` to `last` as `COLUMNS` says: of training and of validation.

        Whoever adds them to what he has looks at `version` first: with another, all is new.
        """
        with self._lock:
            curve = self._curves.setdefault(run.metrics, _Curve())
            self._curves.move_to_end(run.metrics)
        with curve.lock:
            curve.read(run.metrics)
            found = {kind: line.points(first, last, most) for kind, line in curve.lines.items()}
            version = curve.version
        self._forget()
        return {
            "version": version,
            "train": found["train"][0],
            "valid": found["eval"][0],
            "is_thinned": any(is_thinned for _, is_thinned in found.values()),
        }

    def _forget(self) -> None:
        """Those looked at longest ago, beyond what may be remembered; never the last one."""
        with self._lock:
            held = sum(curve.points for curve in self._curves.values())
            while len(self._curves) > 1 and (
                len(self._curves) > _REMEMBERED or held > _REMEMBERED_POINTS
            ):
                _, curve = self._curves.popitem(last=False)
                held -= curve.points


def spark(path: Path) -> list[list[float]]:
    """A few points of a training, step and loss, or reward where answers have one; reads little of
    a long file."""
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return []
    with file:
        size = os.fstat(file.fileno()).st_size
        if size <= _SPARK_BYTES:
            raws = [_record(line) for line in file if line.endswith(b"\n")]
        else:
            raws = [_record_at(file, size * part // _SPARK) for part in range(_SPARK)]
    line = _Line(1)
    for raw in raws:
        if raw is not None and raw["kind"] == "train":
            line.add(raw["step"], [_first(raw, ("score", "loss"))])
    points, _ = line.points(0, 1 << 62, _SPARK)
    return [[step, loss] for step, loss in points if step is not None and loss is not None]


def _record_at(file: IO[bytes], position: int) -> dict[str, Any] | None:
    """The first training record that begins at a byte or soon behind it."""
    file.seek(position)
    lines = file.read(_NEAR).split(b"\n")
    for line in lines[0 if position == 0 else 1 : -1]:
        raw = _record(line)
        if raw is not None and raw["kind"] == "train":
            return raw
    return None


def _record(line: bytes) -> dict[str, Any] | None:
    """What a line says of a step; None if it is torn or says something else."""
    try:
        raw = json.loads(line)
    except ValueError:
        return None
    is_one = isinstance(raw, dict) and isinstance(raw.get("step"), int)
    return raw if is_one and raw.get("kind") in COLUMNS else None


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


def _first(raw: dict[str, Any], names: Sequence[str]) -> float:
    for name in names:
        own = next((one for one in raw if one.startswith(name)), "") if name[-1] == ":" else name
        if own in raw:
            return _number(raw[own])
    return math.nan


def _number(value: Any) -> float:
    """NaN for what is no number; a file has NaN as text."""
    return float(value) if isinstance(value, (int, float)) else math.nan


def _rounded(value: float) -> float | None:
    return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
