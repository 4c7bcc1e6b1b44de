"""Slices of a comparison: who is in them, and what may be said about them."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.schema import EvalConfig
from launcher.evals.comparison import slices
from launcher.evals.comparison.paired import Resampling
from launcher.evals.metric import make_metrics
from launcher.evals.records import Generation, LossRecord, Results
from support.results import results_of

MATCH = make_metrics(EvalConfig(metrics=["exact_match"]))


def answers(right) -> Results:
    made = [Generation(i, "d:1", "q", "yes", "yes" if ok else "no") for i, ok in enumerate(right)]
    return results_of(generations=made)


@given(st.dictionaries(st.integers(0, 999), st.integers(1, 500), max_size=60))
def test_each_record_is_in_one_slice_of_its_length(lengths):
    parts = slices.by_length(lengths)
    assert sorted(i for ids in parts.values() for i in ids) == sorted(lengths)
    assert len(parts) <= 4
    for name, ids in parts.items():
        first, _, last = name.removesuffix(" tokens").partition(" to ")
        assert all(int(first) <= lengths[i] <= int(last or first) for i in ids)


def test_a_gain_in_one_source_only_is_said_of_that_source():
    base = [False] * 80
    tuned = [i < 40 for i in range(80)]
    groups = {"source": {"a": range(40), "b": range(40, 80)}}
    first, second = slices.compare_slices(answers(base), answers(tuned), MATCH, groups)
    assert (first["value"], first["records"]) == ("a", 40)
    assert first["metrics"]["exact_match"]["verdict"] == "better"
    assert first["metrics"]["exact_match"]["difference"] == 1
    assert second["metrics"]["exact_match"]["verdict"] == "no evidence"


def test_small_slices_are_named_and_not_judged():
    groups = {"source": {"a": range(slices.MIN_RECORDS), "b": range(30, 59)}}
    found = slices.compare_slices(answers([False] * 59), answers([True] * 59), MATCH, groups)
    assert [bool(part["metrics"]) for part in found] == [True, False]
    assert found[1]["records"] == 29


def test_a_metric_with_few_answers_in_a_slice_is_not_judged():
    right = [LossRecord(i, 1.0, 5, 2) for i in range(100)]
    better = [LossRecord(i, 0.5, 5, 3) for i in range(100)]
    base, tuned = (
        results_of(losses=losses, generations=answers([ok] * 8).generations)
        for losses, ok in ((right, False), (better, True))
    )
    metrics = make_metrics(EvalConfig(metrics=["loss", "exact_match"]))
    groups = {"source": {"a": range(50), "b": range(50, 100)}}
    for part in slices.compare_slices(base, tuned, metrics, groups):
        assert set(part["metrics"]) == {"loss"}


def test_a_clear_gain_in_each_of_two_hundred_slices_is_found():
    rng = np.random.default_rng(0)
    count = slices.MIN_RECORDS * 20
    base = results_of(
        losses=[LossRecord(i, x, 5, 2) for i, x in enumerate(rng.normal(10, 1, count))]
    )
    tuned = results_of(losses=[LossRecord(r.id, r.loss_sum - 4, 5, 2) for r in base.losses])
    for record, noise in zip(list(tuned.losses), rng.normal(0, 0.5, count), strict=True):
        tuned.losses[record.id] = LossRecord(record.id, record.loss_sum + noise, 5, 2)
    parts = {str(n): range(n, count, 20) for n in range(20)}
    groups = {f"field {n}": parts for n in range(10)}
    metrics = make_metrics(EvalConfig(metrics=["loss"]))
    found = slices.compare_slices(base, tuned, metrics, groups, Resampling(count=1000))
    assert [part["metrics"]["loss"]["verdict"] for part in found] == ["better"] * 200


def test_one_slice_of_a_kind_says_nothing_new():
    groups = {"source": {"a": range(50)}, "length": {}}
    assert slices.compare_slices(answers([True] * 50), answers([True] * 50), MATCH, groups) == []


def test_of_many_sources_the_largest_are_kept_in_their_order():
    groups = {"source": {str(n): range(n) for n in range(1, 31)}}
    found = slices.compare_slices(answers([True] * 31), answers([True] * 31), MATCH, groups)
    assert [part["value"] for part in found] == [str(n) for n in range(11, 31)]


def test_twenty_slices_of_equal_models_give_no_verdict():
    rng = np.random.default_rng(5)
    told = 0
    for seed in range(20):
        base, tuned = (answers(rng.random(800) < 0.5) for _ in range(2))
        groups = {"source": {str(n): range(40 * n, 40 * n + 40) for n in range(20)}}
        found = slices.compare_slices(base, tuned, MATCH, groups, Resampling(seed, 300))
        rows = [row for part in found for row in part["metrics"].values()]
        told += any(row["verdict"] != "no evidence" for row in rows)
    assert told <= 4  # one expected at most
