"""Histograms and ranked bars as numbers for the template; the page draws them as SVG and HTML.

All bars of a histogram are equally wide, so that the few long records in its last one do not
squeeze the others together; values in between are placed in proportion.
"""

from __future__ import annotations

import difflib
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from launcher.report import charts

#: bars of a histogram, about.
BARS = 28
#: share of the values that the even bars hold; the last bar holds the rest.
EVEN = 0.995
#: labels along an axis, at most.
LABELS = 6
#: rows of a ranking that are shown.
RANKED = 15
#: words of two texts that are compared.
COMPARED = 600


@dataclass(frozen=True, slots=True)
class LimitLine:
    """A line across a plot: where, in per cent of its width, and what it says."""

    at: float
    text: str
    beyond: bool
    """Whether the value is to the right of everything drawn."""


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram: `bars` are (left, top, width, height, remark) in a box of 1000 x 1000."""

    name: str
    title: str
    description: str
    bars: list[tuple[float, float, float, float, str]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    mark: LimitLine | None
    unit: str


@dataclass(frozen=True, slots=True)
class Bar:
    """A row of a ranking; `width` is per cent of the longest bar."""

    label: str
    count: int
    share: float
    width: float


def histogram(values: npt.ArrayLike, bars: int = BARS) -> dict[str, list[int]]:
    """{"edges", "counts"} of whole numbers from zero, with round edges.

    Where the largest values are far out, the last bin is a wide one. Nothing for no values.
    """
    numbers = np.asarray(values, np.int64)
    if not len(numbers):
        return {"edges": [], "counts": []}
    top, most = float(np.quantile(numbers, EVEN)), int(numbers.max())
    step = max(1, math.ceil(charts.ticks(0, max(top, 1), bars)[1]))
    edges = list(range(0, math.ceil((top + 1) / step) * step + 1, step))
    if most >= edges[-1]:
        edges.append(most + 1)
    return {"edges": edges, "counts": np.histogram(numbers, edges)[0].tolist()}


def plot(
    name: str,
    title: str,
    data: Mapping[str, Any] | None,
    unit: str,
    text: Callable[[float], str] = lambda value: f"{value:,.0f}",
    mark: tuple[float, str] | None = None,
) -> Histogram | None:
    """A histogram of {"edges", "counts"}; None if it counts nothing."""
    edges, counts = (data["edges"], data["counts"]) if data else ([], [])
    if not any(counts):
        return None
    y_ticks = charts.ticks(0, max(counts))
    top, width = y_ticks[-1], charts.BOX / len(counts)
    bars = []
    for i, count in enumerate(counts):
        height = charts.BOX * count / top
        span = text(edges[i])
        if edges[i + 1] - edges[i] != 1:
            span += f" to {text(edges[i + 1])}"
        remark = f"{span} {unit}: {count:,}"
        bars.append((i * width, charts.BOX - height, width, height, remark))
    shown = range(0, len(edges), math.ceil(len(edges) / LABELS))
    # A bar of a single whole number has it below its middle.
    shift = 0.5 if edges[1] - edges[0] == 1 else 0.0
    most = max(range(len(counts)), key=counts.__getitem__)
    return Histogram(
        name=name,
        title=title,
        description=f"{title}: {sum(counts):,} in {len(counts)} bars, most in {bars[most][4]}",
        bars=bars,
        x_ticks=[
            (100 * (i + shift) / len(counts), text(edges[i]))
            for i in shown
            if i + shift <= len(counts)
        ],
        y_ticks=[(100 * (1 - tick / top), charts.si(tick) if tick else "0") for tick in y_ticks],
        mark=LimitLine(100 * _place(edges, mark[0]), mark[1], mark[0] > edges[-1])
        if mark
        else None,
        unit=unit,
    )


def ranking(counts: Mapping[str, int], total: int | None = None) -> tuple[list[Bar], int, int]:
    """(bars of the largest, how many more there are, how many records those have)."""
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    total = sum(counts.values()) if total is None else total
    most = max((count for _, count in ordered), default=0) or 1
    shown = ordered[:RANKED] if len(ordered) > RANKED + 1 else ordered
    bars = [
        Bar(label, count, count / total if total else 0.0, round(100 * count / most, 2))
        for label, count in shown
    ]
    rest = ordered[len(shown) :]
    return bars, len(rest), sum(count for _, count in rest)


def compared(first: str, other: str) -> list[tuple[bool, str]]:
    """`other` in pieces, each with whether `first` says it otherwise or not at all."""
    before, after = _words(first), _words(other)
    if len(before) > COMPARED or len(after) > COMPARED:
        return [(False, other)]
    pieces = []
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    for kind, _, _, begin, end in matcher.get_opcodes():
        if end > begin:
            pieces.append((kind != "equal", "".join(after[begin:end])))
    return pieces


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)


def _place(edges: Sequence[float], value: float) -> float:
    """Where a value lies among the bars, 0 to 1."""
    i = min(max(bisect_right(edges, value) - 1, 0), len(edges) - 2)
    part = (value - edges[i]) / (edges[i + 1] - edges[i])
    return min(max((i + part) / (len(edges) - 1), 0.0), 1.0)
