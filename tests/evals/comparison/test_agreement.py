"""Agreement with people is what scikit-learn and scipy say it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import cohen_kappa_score

from launcher.evals.comparison import agreement

NUMBERS = st.floats(-5, 5).map(lambda x: round(x, 1))


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abc")), min_size=2))
def test_labels(pairs):
    one, other = zip(*pairs, strict=True)
    found = agreement.of_labels(one, other)
    assert found["accuracy"].value == pytest.approx(np.mean([a == b for a, b in pairs]))
    if len({*one, *other}) > 1:
        expected = cohen_kappa_score(one, other)
        assert found["kappa"].value == pytest.approx(expected, abs=1e-12, nan_ok=True)


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3))
def test_scores(pairs):
    one, other = zip(*pairs, strict=True)
    found = agreement.of_scores(one, other)
    if len(set(one)) > 1 and len(set(other)) > 1:
        assert found["pearson"].value == pytest.approx(pearsonr(one, other)[0], abs=1e-6)
        assert found["spearman"].value == pytest.approx(spearmanr(one, other)[0], abs=1e-6)
    else:
        assert math.isnan(found["pearson"].value)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        x = rng.normal(size=100)
        y = 0.6 * x + 0.8 * rng.normal(size=100)
        found = agreement.of_scores(x.tolist(), y.tolist())["pearson"]
        held += found.low <= 0.6 <= found.high
    assert 85 <= held <= 100


def test_answers_to_one_item_are_drawn_together():
    alone = agreement.mean([1, 0] * 50, [1] * 100)
    together = agreement.mean([10, 0] * 5, [10] * 10)
    assert alone.value == together.value == 0.5
    assert together.high - together.low > 2 * (alone.high - alone.low)
    assert math.isnan(agreement.mean([], []).value)
