"""Line charts and interval plots as numbers for the template; the page draws them as SVG.

Curves are drawn in a stretched 1000 x 1000 box and labels are HTML beside it, so that text keeps
its size on a phone and on a wall. Positions of labels are per cent of the box.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from launcher.report.collect import Point

BOX = 1000
MIB, GIB = 2.0**20, 2.0**30
#: most points of a drawn curve; more cannot be told apart on a screen.
MAX_POINTS = 480
#: curves with fewer points are drawn as they are, others faintly with their average over them.
SMOOTH_FROM = 40

Format = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Curve:
    """One curve: `kind` is "line", "faint", "dots", "mark" (a ring about one point of another) or
    "level" (one value, drawn across)."""

    label: str
    kind: str
    colour: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class Chart:
    """What the template draws: `paths` (kind, colour, path data), `hover` JSON for the script."""

    name: str
    title: str
    description: str
    paths: list[tuple[str, str, str]]
    legend: list[tuple[str, str, str]]
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    hover: str


def chart(
    name: str,
    title: str,
    curves: Sequence[Curve],
    text: Format,
    *,
    from_zero: bool = False,
    unit: float = 1.0,
) -> Chart | None:
    """A chart of all curves that have points; None if there are none.

    `text` writes a value; `unit` is what round numbers on the vertical axis are multiples of.
    """
    curves = [curve for curve in curves if curve.points]
    measured = [curve for curve in curves if curve.kind != "level"]
    if not measured:
        return None
    steps = [x for curve in measured for x, _ in curve.points]
    values = [y for curve in curves for _, y in curve.points]
    left, right = _spread(min(steps), max(steps))
    ends = [*values, 0.0] if from_zero else values
    low, high = _spread(min(ends), max(ends)) if any(ends) or not from_zero else (0.0, 1.0)
    y_ticks = [unit * tick for tick in ticks(low / unit, high / unit)]
    bottom, top = min(y_ticks[0], *values), max(y_ticks[-1], *values)

    def place(point: Point) -> tuple[float, float]:
        x, y = point
        return (x - left) / (right - left), 1 - (y - bottom) / (top - bottom)

    paths, hover = [], []
    for curve in curves:
        points = thin(curve.points)
        if curve.kind == "level":
            points = [(left, points[0][1]), (right, points[0][1])]
        placed = [place(point) for point in points]
        paths.append((curve.kind, curve.colour, _path(placed, dots=curve.kind == "dots")))
        if curve.kind != "faint":
            hover.append(
                {
                    "label": curve.label,
                    "colour": curve.colour,
                    "level": curve.kind == "level",
                    "points": [
                        [round(px, 4), round(py, 4), f"{x:,.0f}", text(y)]
                        for (px, py), (x, y) in zip(placed, points, strict=True)
                    ],
                }
            )
    return Chart(
        name=name,
        title=title,
        description=describe(title, measured, text),
        paths=paths,
        legend=[(curve.label, curve.kind, curve.colour) for curve in curves],
        x_ticks=[
            (100 * (x - left) / (right - left), f"{x:,.0f}")
            for x in ticks(left, right)
            if left <= x <= right and x == int(x)
        ],
        y_ticks=[
            (100 * place((left, y))[1], label)
            for y, label in zip(y_ticks, labels(y_ticks, text), strict=True)
        ],
        hover=json.dumps(hover, separators=(",", ":")),
    )


def with_average(label: str, colour: str, points: Sequence[Point]) -> list[Curve]:
    """A noisy curve as it is while short, else faint under its moving average."""
    if len(points) < SMOOTH_FROM:
        return [Curve(label or "each step", "line", colour, points)]
    return [
        Curve(f"{label} each step".strip(), "faint", colour, points),
        Curve(f"{label} average".strip(), "line", colour, smooth(points)),
    ]


def smooth(points: Sequence[Point], share: float = 0.04) -> list[Point]:
    """Average over neighbours on both sides, `share` of all points in sum; fewer at the ends."""
    reach = max(1, round(share * len(points) / 2))
    sums = list(itertools.accumulate((y for _, y in points), initial=0.0))
    result = []
    for i, (x, _) in enumerate(points):
        near = min(reach, i, len(points) - 1 - i)
        result.append((x, (sums[i + near + 1] - sums[i - near]) / (2 * near + 1)))
    return result


def thin(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most about `limit` points; lowest and highest of each stretch stay, so spikes are kept."""
    if len(points) <= limit:
        return list(points)
    stretches = limit // 2
    kept = {0, len(points) - 1}
    for stretch in range(stretches):
        begin, end = (len(points) * (stretch + offset) // stretches for offset in (0, 1))
        inside = range(begin, end)
        kept.add(min(inside, key=lambda i: points[i][1]))
        kept.add(max(inside, key=lambda i: points[i][1]))
    return [points[i] for i in sorted(kept)]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About `count` round numbers that enclose low..high."""
    raw = (high - low) / count
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    # Multiples are rounded, so that 3 * 0.1 is 0.3.
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


def reach(row: Mapping[str, Any]) -> float:
    """The largest change that a row's interval and difference speak of."""
    return max((abs(end) for end in (*row["interval"], row["difference"]) if end), default=0.0)


def interval_plot(row: Mapping[str, Any], widest: float | None = None) -> dict[str, float] | None:
    """Positions 0..1000 of an interval and its difference: 500 is no change, gains to the right.

    `widest` is the change that is drawn close to an end; by default the row's own `reach`.
    """
    low, high = row["interval"]
    difference = row["difference"]
    if low is None or high is None or difference is None:
        return None
    sign = 1 if row.get("higher_is_better", True) else -1
    ends = sorted((sign * low, sign * high))
    full = widest or reach(row) or 1.0

    def place(value: float) -> float:
        return round(BOX / 2 + 0.46 * BOX * value / full, 1)

    return {"low": place(ends[0]), "high": place(ends[1]), "at": place(sign * difference)}


def si(value: float) -> str:
    """Three digits and a magnitude: 3.80k, 1.2M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def in_bytes(value: float) -> str:
    """Bytes in GiB or MiB."""
    if value == 0:
        return "0"
    if abs(value) >= GIB / 4:
        return f"{value / GIB:.3g} GiB"
    return f"{value / MIB:.0f} MiB"


def bytes_in(unit: float) -> Format:
    """A format that writes bytes in GiB, or in MiB, whatever their size: one unit an axis."""
    name = "GiB" if unit == GIB else "MiB"
    return lambda value: f"{value / unit:.3g} {name}" if value else "0"


def plain(value: float) -> str:
    """A number of any size in four digits, without trailing zeros."""
    return _short(f"{value:.3e}" if 0 < abs(value) < 1e-3 else f"{value:.4g}")


def labels(values: Sequence[float], text: Format = plain) -> list[str]:
    """The numbers of an axis, all with powers of ten if one of them needs that."""
    texts = [text(value) for value in values]
    if text is not plain or not any("e" in label for label in texts):
        return texts
    return [_short(f"{value:.3e}") if value else "0" for value in values]


def _short(text: str) -> str:
    digits, _, power = text.partition("e")
    if not power:
        return digits
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return f"{digits}e{int(power)}"


def describe(title: str, curves: Sequence[Curve], text: Format) -> str:
    """The chart in one line, for screen readers."""
    parts = []
    for curve in curves:
        if curve.kind == "mark":
            parts.append(f"{curve.label}: {text(curve.points[0][1])}")
        elif curve.kind != "faint":
            (first, start), (last, end) = curve.points[0], curve.points[-1]
            parts.append(
                f"{curve.label} {text(start)} at step {first:,.0f}, {text(end)} at step {last:,.0f}"
            )
    return f"{title}: {'; '.join(parts)}"


def _path(placed: Sequence[tuple[float, float]], *, dots: bool) -> str:
    """SVG path data; a dot is a line of no length, which a round line cap makes a disc."""
    words = []
    for index, (x, y) in enumerate(placed):
        words.append(f"{'M' if dots or not index else 'L'}{x * BOX:.1f} {y * BOX:.1f}")
        if dots or len(placed) == 1:
            words.append("h0")
    return "".join(words)


def _spread(low: float, high: float) -> tuple[float, float]:
    """The range, widened where it is a single value."""
    if high > low:
        return low, high
    margin = abs(high) * 0.1 or 1.0
    return low - margin, high + margin
