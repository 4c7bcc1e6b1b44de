"""p-values, their correction, effect and sample size: closed forms and simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.schema import EvalConfig
from launcher.evals.comparison import significance
from launcher.evals.comparison.paired import Resampling, compare
from launcher.evals.metric import make_metrics
from launcher.evals.records import Generation, Results
from support.results import results_of


def answers(right) -> Results:
    made = [
        Generation(i, "d:1", "q", "yes", "yes" if is_right else "no")
        for i, is_right in enumerate(right)
    ]
    return results_of(generations=made)


@pytest.mark.parametrize(
    ("improved", "worsened", "p_value"),
    [
        (0, 0, 1.0),
        (5, 5, 1.0),
        (6, 0, 2 / 64),
        (0, 6, 2 / 64),
        (9, 1, 2 * 11 / 1024),
        (3, 2, 1.0),
    ],
)
def test_mcnemar_by_hand(improved, worsened, p_value):
    assert significance.mcnemar(improved, worsened) == pytest.approx(p_value)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_symmetric_and_a_probability(improved, worsened):
    p_value = significance.mcnemar(improved, worsened)
    assert 0 < p_value <= 1
    assert p_value == pytest.approx(significance.mcnemar(worsened, improved))


def test_mcnemar_of_many_records_has_no_overflow():
    assert significance.mcnemar(60_000, 40_000) < 1e-100
    assert math.isfinite(significance.mcnemar(50_100, 49_900))


def test_holm_by_hand():
    assert significance.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert significance.holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_that_of_bonferroni(p_values):
    for raw, adjusted in zip(p_values, significance.holm(p_values), strict=True):
        assert raw - 1e-12 <= adjusted <= min(1.0, len(p_values) * raw) + 1e-12


def test_a_p_value_may_be_smaller_than_resamples_can_tell_but_not_larger():
    rng = np.random.default_rng(0)
    far, near = rng.normal(10, 1, 1000), rng.normal(4, 1, 1000)
    assert significance.bootstrap(far) < 1e-20
    assert significance.bootstrap(near) <= 2 / 1001
    assert significance.bootstrap(-far) == significance.bootstrap(far)
    assert significance.bootstrap(np.ones(1000)) == 2 / 1001


def test_effect_is_the_mean_gain_in_standard_deviations():
    assert significance.effect_size(np.array([1.0, 3.0])) == pytest.approx(2 / math.sqrt(2))
    assert significance.effect_size(np.ones(5)) is None
    assert significance.effect_size(np.array([np.nan, 1.0])) is None


def test_needed_records_would_decide():
    # A gain of a tenth of its deviation: (1.96 + 0.84)^2 / 0.01 records, whatever the sample.
    rng = np.random.default_rng(0)
    for records in (50, 400):
        resampled = rng.normal(0.1, 1 / math.sqrt(records), 20_000)
        assert significance.records_needed(records, 0.1, resampled) == pytest.approx(785, rel=0.05)
    assert significance.records_needed(50, 0.0, resampled) is None


@pytest.mark.slow
def test_equal_models_are_called_different_in_one_of_twenty_comparisons_at_most():
    metrics = make_metrics(EvalConfig(metrics=["exact_match", "f1", "chrf"]))
    rng = np.random.default_rng(1)
    told = 0
    for seed in range(200):
        base, tuned = (answers(rng.random(80) < 0.4) for _ in range(2))
        rows = compare(base, tuned, metrics, Resampling(seed, 400))["metrics"].values()
        told += any(row["verdict"] != "no evidence" for row in rows)
    assert told <= 17  # 10 expected; more than 17 of 200 in one of a hundred simulations


def test_a_real_difference_is_found_and_says_so():
    metrics = make_metrics(EvalConfig(metrics=["exact_match", "f1"]))
    rng = np.random.default_rng(2)
    row = compare(answers(rng.random(300) < 0.4), answers(rng.random(300) < 0.7), metrics)
    match = row["metrics"]["exact_match"]
    assert match["verdict"] == "better"
    assert match["needed"] is None
    assert match["effect"] > 0.2
    assert match["p_value"] <= match["p_adjusted"] < 0.001


def test_no_evidence_says_how_many_records_would_decide():
    base, tuned = [True, False] * 20, [True, False] * 19 + [True, True]
    row = compare(answers(base), answers(tuned), make_metrics(EvalConfig(metrics=["exact_match"])))
    match = row["metrics"]["exact_match"]
    assert match["verdict"] == "no evidence"
    assert match["needed"] > 40


@pytest.mark.parametrize(("records", "share"), [(1, 0.975), (10, 0.3085), (72, 0.0499)])
def test_what_none_of_some_records_shows_is_bounded(records, share):
    assert significance.unseen(records) == pytest.approx(share, abs=1e-4)
