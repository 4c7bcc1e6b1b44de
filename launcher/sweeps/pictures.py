"""Pictures of a sweep as numbers for the template: each key against the metric, and all curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.report.charts import thin
from launcher.sweeps.coordinates import Mark, letters, of_dimension, of_metric, round_numbers
from launcher.sweeps.folder import Request, values
from launcher.sweeps.importance import value_of
from launcher.sweeps.table import TrialRow

#: The box that is drawn, and the room in it for the labels left, right, above and below.
WIDTH, HEIGHT = 480.0, 280.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 24.0, 14.0, 30.0
_POINTS = 120
_TRAINING = "loss"


@dataclass(frozen=True, slots=True)
class TrialTrace:
    """A trial in a picture: its path, a dot where that is one point, and how good it is, 0 to 1."""

    number: int
    path: str
    quality: float


@dataclass(frozen=True, slots=True)
class Picture:
    """Titles of both axes, (place, label) of their marks, and the trials, the best one last."""

    across: str
    up: str
    x_marks: list[Mark]
    y_marks: list[Mark]
    traces: list[TrialTrace]
    room: int
    """Letters of a label below that have room."""


def against(request: Request, rows: Sequence[TrialRow]) -> list[Picture]:
    """The metric of every trial that has a value, over each key that varies."""
    shown = [row for row in rows if row.value is not None]
    if not shown:
        return []
    heights, y_marks = of_metric([row.value or 0.0 for row in shown])
    good = _qualities(request, shown)
    found = []
    for dimension in request.swept:
        places, x_marks = of_dimension(dimension, [value_of(row, dimension) for row in shown])
        traces = [
            TrialTrace(row.trial.number, _path([(x, y)]), good[row.trial.number])
            for row, x, y in zip(shown, places, heights, strict=True)
        ]
        found.append(_picture(dimension.key, request.metric, x_marks, y_marks, traces))
    return found


def curves(request: Request, rows: Sequence[TrialRow]) -> list[Picture]:
    """The metric, and the loss of training, of all trials over their steps.

    What was measured once in every trial is no curve and is left out.
    """
    good, found = _qualities(request, rows), []
    for name in dict.fromkeys((request.metric, _TRAINING)):
        lines = {row.trial.number: thin(values(row.trial.run, name), _POINTS) for row in rows}
        if not any(len(line) > 1 for line in lines.values()):
            continue
        lines = {number: line for number, line in lines.items() if line}
        heights, y_marks = of_metric([y for line in lines.values() for _, y in line])
        last = max(step for line in lines.values() for step, _ in line) or 1
        up, traces = iter(heights), []
        for number, line in lines.items():
            path = _path([(step / last, next(up)) for step, _ in line])
            traces.append(TrialTrace(number, path, good[number]))
        steps = [step for step in round_numbers(0, last) if step == int(step)]
        x_marks = [(step / last, f"{step:,.0f}") for step in steps]
        found.append(_picture("step", name, x_marks, y_marks, traces))
    return found


def _qualities(request: Request, rows: Sequence[TrialRow]) -> dict[int, float]:
    """Trial -> 1 for the best value of the metric, 0 for the worst or none."""
    known = [row for row in rows if row.value is not None]
    places = of_metric([row.value or 0.0 for row in known])[0] if known else []
    found = {row.trial.number: 0.0 for row in rows}
    for row, place in zip(known, places, strict=True):
        found[row.trial.number] = round(place if request.maximize else 1 - place, 3)
    return found


def _picture(
    across: str, up: str, x_marks: list[Mark], y_marks: list[Mark], traces: list[TrialTrace]
) -> Picture:
    return Picture(
        across=across,
        up=up,
        x_marks=[(_x(place), label) for place, label in x_marks],
        y_marks=[(_y(place), label) for place, label in y_marks],
        traces=sorted(traces, key=lambda trace: trace.quality),
        room=letters((WIDTH - _LEFT - _RIGHT) / max(1, len(x_marks) - 1)),
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    path = "M" + "L".join(f"{_x(x)} {_y(y)}" for x, y in points)
    # A line of no length is a dot.
    return path if len(points) > 1 else f"{path}h0"


def _x(place: float) -> float:
    return round(_LEFT + place * (WIDTH - _LEFT - _RIGHT), 1)


def _y(place: float) -> float:
    return round(HEIGHT - _BOTTOM - place * (HEIGHT - _TOP - _BOTTOM), 1)
