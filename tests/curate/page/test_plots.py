"""Histograms and rankings count everything once and stay inside their boxes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.curate.page import plots


@given(st.lists(st.integers(0, 10**7), min_size=1, max_size=300))
def test_a_histogram_counts_every_value_once(values):
    found = plots.histogram(values)
    edges, counts = found["edges"], found["counts"]
    assert sum(counts) == len(values)
    assert len(edges) == len(counts) + 1 <= plots.BARS + 4
    assert (np.diff(edges) > 0).all()
    assert len(set(np.diff(edges)[:-1])) <= 1
    assert edges[0] == 0
    assert all(isinstance(number, int) for number in [*edges, *counts])


def test_values_far_out_are_in_the_last_bin_alone():
    found = plots.histogram([*range(1000), 10**6])
    assert found["edges"][-2] < 1100
    assert found["edges"][-1] == 10**6 + 1
    assert found["counts"][-1] == 1


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=200), st.integers(0, 9000))
def test_a_plot_stays_in_its_box(values, limit):
    drawn = plots.plot("n", "t", plots.histogram(values), "tokens", mark=(limit, "limit"))
    total = 0
    for left, top, width, height, remark in drawn.bars:
        assert 0 <= left <= left + width <= 1000 + 1e-6
        assert 0 <= top <= top + height <= 1000 + 1e-6
        total += int(remark.rpartition(": ")[2].replace(",", ""))
    assert total == len(values)
    assert all(0 <= at <= 100 for at, _ in [*drawn.x_ticks, *drawn.y_ticks])
    assert 0 <= drawn.mark.at <= 100


def test_a_limit_stands_where_its_value_is():
    data = {"edges": [0, 10, 20, 100], "counts": [1, 2, 3]}
    for value, at, beyond in (
        (0, 0, False),
        (15, 50, False),
        (60, 250 / 3, False),
        (500, 100, True),
    ):
        mark = plots.plot("n", "t", data, "tokens", mark=(value, "limit")).mark
        assert (mark.at, mark.beyond) == (pytest.approx(at), beyond)


@pytest.mark.parametrize("data", [None, {"edges": [], "counts": []}, plots.histogram([])])
def test_nothing_to_draw(data):
    assert plots.plot("n", "t", data, "tokens") is None


@given(st.dictionaries(st.text(max_size=3), st.integers(1, 99), max_size=40))
def test_a_ranking_leaves_nothing_out(counts):
    bars, others, records = plots.ranking(counts)
    assert len(bars) + others == len(counts)
    assert sum(bar.count for bar in bars) + records == sum(counts.values())
    assert others != 1
    assert [bar.count for bar in bars] == sorted(counts.values(), reverse=True)[: len(bars)]
    assert all(0 < bar.width <= 100 for bar in bars)


@given(st.text(max_size=40), st.text(max_size=40))
def test_differences_join_to_the_second_text(first, other):
    pieces = plots.compared(first, other)
    assert "".join(text for _, text in pieces) == other
    if first == other:
        assert not any(changed for changed, _ in pieces)


def test_differences_are_the_words_that_changed():
    pieces = plots.compared("It takes five cars.", "It takes forty cars.")
    assert pieces == [(False, "It takes "), (True, "forty"), (False, " cars.")]
