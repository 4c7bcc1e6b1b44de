"""Charts as numbers: round ticks, nothing outside the box, spikes kept."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.report import charts
from launcher.report.charts import Curve

VALUES = st.floats(-1e9, 1e9, allow_nan=False).map(lambda v: round(v, 6))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.25, 0.5, 0.75, 1]),
        (0.93, 3.31, [0, 1, 2, 3, 4]),
        (0, 2e-4, [0, 5e-5, 1e-4, 1.5e-4, 2e-4]),
        (1, 300, [0, 100, 200, 300]),
        (-0.3, 0.3, [-0.4, -0.2, 0, 0.2, 0.4]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert charts.ticks(low, high) == expected


@given(VALUES, st.floats(1e-6, 1e9))
def test_ticks_enclose_the_range(low, size):
    found = charts.ticks(low, low + size)
    slack = 1e-6 * (abs(low) + size)
    assert found[0] <= low + slack
    assert found[-1] >= low + size - slack
    assert 2 <= len(found) <= 7


@given(st.lists(VALUES, min_size=1, max_size=50), st.booleans())
def test_everything_lies_in_the_box(values, from_zero):
    points = [(float(step), value) for step, value in enumerate(values)]
    made = charts.chart("c", "C", [Curve("y", "line", "a", points)], str, from_zero=from_zero)
    numbers = [float(n) for _, _, d in made.paths for n in re.findall(r"-?\d+(?:\.\d+)?", d)]
    assert all(-1 <= n <= 1001 for n in numbers)
    assert all(-0.1 <= at <= 100.1 for at, _ in made.x_ticks + made.y_ticks)
    (hover,) = json.loads(made.hover)
    assert [point[3] for point in hover["points"]] == [str(value) for value in values]


def test_higher_values_are_drawn_higher():
    made = charts.chart("c", "C", [Curve("y", "line", "a", [(1, 0.0), (2, 4.0)])], str)
    assert made.paths == [("line", "a", "M0.0 1000.0L1000.0 0.0")]
    assert made.description == "C: y 0.0 at step 1, 4.0 at step 2"


def test_no_points_no_chart_and_a_level_alone_is_none():
    assert charts.chart("c", "C", [Curve("y", "line", "a", [])], str) is None
    assert charts.chart("c", "C", [Curve("y", "level", "a", [(0, 1.0)])], str) is None


def test_a_level_reaches_across_the_chart_of_other_curves():
    curves = [Curve("y", "dots", "a", [(10, 1.0), (20, 2.0)]), Curve("z", "level", "b", [(0, 3.0)])]
    made = charts.chart("c", "C", curves, str)
    assert made.paths[0][2].count("h0") == 2
    assert made.paths[1] == ("level", "b", "M0.0 0.0L1000.0 0.0")


def test_thinning_keeps_ends_and_spikes():
    points = [(float(i), float(i == 31_337)) for i in range(100_000)]
    kept = charts.thin(points)
    assert len(kept) <= charts.MAX_POINTS + 2
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert (31_337.0, 1.0) in kept
    assert kept == sorted(kept)
    assert charts.thin(points[:10]) == points[:10]


def test_the_average_follows_a_straight_line_without_lag():
    line = [(float(i), 2.0 * i) for i in range(200)]
    assert [y for _, y in charts.smooth(line)] == pytest.approx([y for _, y in line])


def test_long_curves_are_averaged_and_short_ones_are_not():
    points = [(float(i), 1.0) for i in range(charts.SMOOTH_FROM)]
    assert [c.kind for c in charts.with_average("y", "a", points)] == ["faint", "line"]
    assert [c.kind for c in charts.with_average("y", "a", points[:-1])] == ["line"]


def test_interval_plot_puts_gains_to_the_right():
    row = {"difference": -2.0, "interval": [-3.0, -1.0], "higher_is_better": False}
    plot = charts.interval_plot(row)
    assert 500 < plot["low"] < plot["at"] < plot["high"] < 1000
    mirrored = charts.interval_plot({**row, "higher_is_better": True})
    assert mirrored["at"] == pytest.approx(1000 - plot["at"])
    nothing = charts.interval_plot({"difference": 0.0, "interval": [0.0, 0.0]})
    assert set(nothing.values()) == {500}
    assert charts.interval_plot({"difference": None, "interval": [None, None]}) is None


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 2.5e-4, 5e-4, 0.001], ["0", "2.5e-4", "5e-4", "1e-3"]),
        ([1e-4, 0.001, 0.01], ["1e-4", "1e-3", "1e-2"]),
        ([0.0, 0.5, 12.0], ["0", "0.5", "12"]),
    ],
)
def test_numbers_of_an_axis_are_written_in_one_way(values, expected):
    assert charts.labels(values) == expected


@pytest.mark.parametrize(
    ("write", "value", "expected"),
    [
        (charts.plain, 2e-4, "2e-4"),
        (charts.plain, 1.5e-5, "1.5e-5"),
        (charts.plain, 0.0, "0"),
        (charts.plain, 12.3456, "12.35"),
        (charts.plain, 1.2e9, "1.2e9"),
        (charts.si, 3912.0, "3.91k"),
        (charts.si, 1.25e6, "1.25M"),
        (charts.si, 7.0, "7"),
        (charts.in_bytes, 1.5 * 2**30, "1.5 GiB"),
        (charts.in_bytes, 3.0 * 2**20, "3 MiB"),
        (charts.in_bytes, 0.0, "0"),
        (charts.bytes_in(charts.GIB), 0.25 * 2**30, "0.25 GiB"),
        (charts.bytes_in(charts.MIB), 0.25 * 2**30, "256 MiB"),
        (charts.bytes_in(charts.MIB), 0.0, "0"),
    ],
)
def test_numbers_for_people(write, value, expected):
    assert write(value) == expected
