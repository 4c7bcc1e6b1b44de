"""Parallel coordinates as numbers for the template: one axis a varied key, the metric last."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.report.charts import labels, plain, ticks
from launcher.sweeps.folder import Request
from launcher.sweeps.importance import value_of
from launcher.sweeps.space import Dimension
from launcher.sweeps.table import TrialRow

WIDTH, HEIGHT = 1000.0, 320.0
#: Room beside the first and the last axis for their labels, and above and below all.
_SIDE, _TOP, _BOTTOM = 90.0, 36.0, 24.0
_MOST_POWERS = 7
#: Width of a letter of a label, and how few of them still say something.
_LETTER, _FEWEST = 7, 4


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis: its title, where it stands, and (height, label) of its marks."""

    title: str
    x: float
    marks: list[tuple[float, str]]


@dataclass(frozen=True, slots=True)
class Line:
    """A trial: its row, its path, and how good it is: 1 is the best value, 0 the worst."""

    number: int
    path: str
    quality: float


@dataclass(frozen=True, slots=True)
class ParallelPlot:
    """Everything to draw."""

    axes: list[Axis]
    lines: list[Line]
    room: int
    """Letters of a mark's label that have room before the next axis."""


def plot(request: Request, rows: Sequence[TrialRow]) -> ParallelPlot | None:
    """Axes and lines of all trials that have a value; None if there are none."""
    shown = [row for row in rows if row.value is not None]
    if not shown:
        return None
    scales = [of_dimension(d, [value_of(row, d) for row in shown]) for d in request.swept]
    scales.append(of_metric([row.value or 0.0 for row in shown]))
    titles = [*(d.key for d in request.swept), request.metric]
    gap = (WIDTH - 2 * _SIDE) / max(1, len(scales) - 1)
    xs = [_SIDE + gap * i for i in range(len(scales))]
    axes = [
        Axis(title, x, [(_height(at), label) for at, label in marks])
        for title, x, (_, marks) in zip(titles, xs, scales, strict=True)
    ]
    lines = []
    for index, row in enumerate(shown):
        points = [(x, _height(places[index])) for x, (places, _) in zip(xs, scales, strict=True)]
        good = scales[-1][0][index]
        path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        lines.append(Line(row.trial.number, path, round(good if request.maximize else 1 - good, 3)))
    # The best are drawn last, over the others.
    return ParallelPlot(axes, sorted(lines, key=lambda line: line.quality), letters(gap))


def letters(width: float) -> int:
    """How many letters of a label have room in this width."""
    return max(_FEWEST, int(width) // _LETTER - 2)


def short(text: str, most: int) -> str:
    """`text` in at most so many letters, on one line."""
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 1]}…"


#: A place 0..1 on an axis, or where it is drawn, and the label there.
Mark = tuple[float, str]
#: Place of every trial on an axis, and its marks.
Scale = tuple[list[float], list[Mark]]


def of_dimension(dimension: Dimension, texts: Sequence[str]) -> Scale:
    """Places of trials that have these values of a key."""
    if dimension.values:
        order = {text: i for i, text in enumerate(_ordered([*dimension.values, *texts]))}
        last = max(1, len(order) - 1)
        step = math.ceil(len(order) / 12)
        marks = [(i / last, text) for text, i in order.items() if i % step == 0]
        return [order[text] / last for text in texts], marks
    return _continuous([float(t) for t in texts], dimension.low, dimension.high, dimension.log)


def of_metric(values: Sequence[float]) -> Scale:
    """Places of these values, which may span magnitudes."""
    low, high = min(values), max(values)
    return _continuous(values, low, high, log=low > 0 and high / low > 100)


def _continuous(values: Sequence[float], low: float, high: float, log: bool) -> Scale:
    def warp(value: float) -> float:
        return math.log(value) if log else value

    size = warp(high) - warp(low)
    if not size:
        return [0.5] * len(values), [(0.5, plain(low))]
    places = [min(1.0, max(0.0, (warp(value) - warp(low)) / size)) for value in values]
    marks = round_numbers(low, high, log=log)
    at = [(warp(mark) - warp(low)) / size for mark in marks]
    return places, list(zip(at, labels(marks), strict=True))


def round_numbers(low: float, high: float, *, log: bool = False) -> list[float]:
    """Some round numbers from low to high: powers of ten on a logarithmic axis that has several."""
    found: list[float] = []
    if log:
        first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
        step = math.ceil((last - first + 1) / _MOST_POWERS)
        found = [float(f"1e{power}") for power in range(first, last + 1, max(1, step))]
    if len(found) < 2:
        found = ticks(low, high)
    slack = 1e-9 * (high - low)
    return [mark for mark in found if low - slack <= mark <= high + slack] or [low, high]


def _ordered(texts: Sequence[str]) -> list[str]:
    different = list(dict.fromkeys(texts))
    try:
        return sorted(different, key=float)
    except ValueError:
        return different


def _height(place: float) -> float:
    return round(HEIGHT - _BOTTOM - place * (HEIGHT - _TOP - _BOTTOM), 1)
