"""Metrics of a classifier against scikit-learn, on records that hypothesis makes up."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
)
from sklearn.preprocessing import MultiLabelBinarizer

from launcher.config.schema import ClassifyConfig, EvalConfig
from launcher.evals.comparison import paired
from launcher.evals.metric import Metric, make_metrics
from launcher.objectives.classify import confusion, threshold
from launcher.objectives.classify.classes import Classes
from launcher.objectives.classify.metrics.accuracy import Accuracy, InScopeAccuracy, OosRecall
from launcher.objectives.classify.metrics.auroc import Auroc
from launcher.objectives.classify.metrics.ece import Ece
from launcher.objectives.classify.metrics.f1 import F1Macro, F1Micro
from launcher.objectives.classify.records import OUT_OF_SCOPE, ClassRecord
from support.results import results_of

CONFIG = EvalConfig()
#: scikit-learn takes milliseconds an example, and the machine may be busy.
QUICKLY = settings(max_examples=40, deadline=None)
NUMBERS = st.integers(OUT_OF_SCOPE, 4)


def record(i: int, truth: int, answer: int, probability: float) -> ClassRecord:
    rejected = answer == OUT_OF_SCOPE
    return ClassRecord(i, [truth], [0 if rejected else answer], probability, rejected)


def of_a_classifier(name: str) -> list[Metric]:
    return make_metrics(EvalConfig(metrics=[name]), ClassifyConfig.own_metrics)


@st.composite
def answers(draw, size: int = 40) -> list[ClassRecord]:
    probability = st.floats(0.001, 1, allow_nan=False)
    rows = draw(st.lists(st.tuples(NUMBERS, NUMBERS, probability), min_size=1, max_size=size))
    return [record(i, *row) for i, row in enumerate(rows)]


@QUICKLY
@given(answers())
def test_scores_of_one_class_a_text(records):
    truth, answer = (
        [side[0] for side in sides]
        for sides in zip(*((r.truth, r.answer) for r in records), strict=True)
    )
    macro = f1_score(truth, answer, average="macro", zero_division=0)
    assert Accuracy(CONFIG).score(records) == pytest.approx(accuracy_score(truth, answer))
    assert F1Micro(CONFIG).score(records) == pytest.approx(accuracy_score(truth, answer))
    assert F1Macro(CONFIG).score(records) == pytest.approx(macro)
    inside = [t == a for t, a in zip(truth, answer, strict=True) if t != OUT_OF_SCOPE]
    outside = [t == a for t, a in zip(truth, answer, strict=True) if t == OUT_OF_SCOPE]
    for metric, right in ((InScopeAccuracy, inside), (OosRecall, outside)):
        expected = np.mean(right) if right else math.nan
        assert metric(CONFIG).score(records) == pytest.approx(expected, nan_ok=True)


@QUICKLY
@given(st.lists(st.tuples(*[st.frozensets(st.integers(0, 4))] * 2), min_size=1, max_size=30))
def test_scores_of_several_classes_a_text(sides):
    records = [
        ClassRecord(i, sorted(truth), sorted(named), 0.5) for i, (truth, named) in enumerate(sides)
    ]
    occurring = sorted({number for pair in sides for side in pair for number in side})
    binarizer = MultiLabelBinarizer(classes=occurring)
    truth, named = (binarizer.fit_transform([pair[k] for pair in sides]) for k in (0, 1))
    expected = np.mean([truth == named for truth, named in sides])
    assert Accuracy(CONFIG).score(records) == pytest.approx(expected)
    for metric, average in ((F1Macro, "macro"), (F1Micro, "micro")):
        score = metric(CONFIG).score(records)
        if occurring:
            # One column alone is two classes to scikit-learn: its "binary" is the score of the one.
            kind = average if len(occurring) > 1 else "binary"
            wanted = f1_score(truth, named, average=kind, zero_division=0)
            assert score == pytest.approx(wanted)
        elif average == "macro":
            assert math.isnan(score)


@QUICKLY
@given(answers())
def test_auroc(records):
    metric = Auroc(CONFIG)
    inside = [not r.is_outside for r in records]
    if all(inside) or not any(inside):
        assert math.isnan(metric.score(records))
        assert not metric.counts(metric.statistics(records)).any()
        return
    expected = roc_auc_score(inside, [r.probability for r in records])
    assert metric.score(records) == pytest.approx(expected)
    # What single records contribute averages to the whole, on either side.
    each = metric.each(metric.statistics(records))
    assert each[inside].mean() == pytest.approx(expected)
    assert each[[not one for one in inside]].mean() == pytest.approx(expected)


def test_auroc_of_more_probabilities_than_bins():
    rng = np.random.default_rng(0)
    outside = rng.random(5000) < 0.1
    values = np.where(outside, rng.beta(2, 3, 5000), rng.beta(3, 2, 5000))
    pairs = zip(outside, values, strict=True)
    records = [record(i, -1 if out else 0, 0, float(p)) for i, (out, p) in enumerate(pairs)]
    assert Auroc(CONFIG).score(records) == pytest.approx(roc_auc_score(~outside, values), abs=1e-3)


@QUICKLY
@given(answers())
def test_ece_is_the_formula_of_the_paper(records):
    kept = [r for r in records if not r.is_outside]
    total = 0.0
    for i in range(15):
        own = [r for r in kept if i / 15 < r.probability <= (i + 1) / 15]
        if own:
            accuracy = np.mean([r.predicted == r.truth for r in own])
            total += len(own) / len(kept) * abs(accuracy - np.mean([r.probability for r in own]))
    expected = total if kept else math.nan
    assert Ece(CONFIG).score(records) == pytest.approx(expected, nan_ok=True)


def test_a_model_that_diverged_has_no_calibration_and_loses():
    good = [record(i, i % 2, i % 2, 0.9) for i in range(20)]
    bad = [ClassRecord(r.id, r.truth, [0], math.nan) for r in good]
    assert math.isnan(Ece(CONFIG).score(bad))
    metrics = of_a_classifier("ece")
    made = paired.compare(results_of(classes=good), results_of(classes=bad), metrics)
    assert made["metrics"]["ece"]["tuned"] is None
    assert made["metrics"]["ece"]["verdict"] == "worse"


def test_three_records_decide_nothing():
    right = [record(i, 0, 0, 0.9) for i in range(3)]
    wrong = [record(i, 0, 1, 0.9) for i in range(3)]
    metrics = of_a_classifier("accuracy")
    made = paired.compare(results_of(classes=wrong), results_of(classes=right), metrics)
    row = made["metrics"]["accuracy"]
    assert (row["base"], row["tuned"], row["verdict"]) == (0.0, 1.0, "no evidence")


CLASSES = Classes(
    names=list("abcde"),
    multi_label=False,
    out_of_scope="oos",
    records=[1] * 5,
    usual=[2],
    weights=None,
)


@QUICKLY
@given(answers())
def test_the_report_has_scikit_learns_numbers(records):
    made = confusion.report(records, CLASSES)
    names = [row["name"] for row in made["classes"]]
    truth, answer = (
        [CLASSES.text(getattr(r, side)) for r in records] for side in ("truth", "answer")
    )
    numbers = precision_recall_fscore_support(truth, answer, labels=names, zero_division=0)
    for row, *expected in zip(made["classes"], *numbers, strict=True):
        found = [row[key] or 0 for key in ("precision", "recall", "f1", "support")]
        assert found == pytest.approx(expected)
    assert sum(count for *_, count in made["confusion"]) == len(records)
    for one, other, count in made["confusion"]:
        assert count == sum(pair == (one, other) for pair in zip(truth, answer, strict=True))


def test_guessing_names_the_usual_class():
    records = [record(i, truth, 0, 0.9) for i, truth in enumerate([2, 2, 1, OUT_OF_SCOPE])]
    made = confusion.guessing(records, CLASSES, [Accuracy(CONFIG), InScopeAccuracy(CONFIG)])
    assert made["label"] == "c"
    assert made["metrics"] == pytest.approx({"accuracy": 0.5, "in_scope_accuracy": 2 / 3})


@QUICKLY
@given(answers())
def test_no_threshold_is_better_than_the_chosen(records):
    def right(limit: float) -> int:
        return sum(
            r.is_outside if r.probability < limit else r.truth == r.predicted for r in records
        )

    chosen = threshold.choose(records)
    candidates = [0.0, 1.1, *(r.probability for r in records)]
    assert right(chosen) == max(map(right, candidates))
    judged = threshold.reject(records, chosen)
    assert [r.rejected for r in judged] == [r.probability < chosen for r in records]


def test_a_model_that_is_sure_of_everything_out_of_scope_is_rejected_whole():
    records = [ClassRecord(i, [OUT_OF_SCOPE], [0], 1.0) for i in range(4)]
    assert all(r.rejected for r in threshold.reject(records, threshold.choose(records)))


@QUICKLY
@given(answers())
def test_no_record_moves_the_threshold_that_judges_it(records):
    judged, _ = threshold.judge(records)
    assert [r.id for r in judged] == [r.id for r in records]
    target = records[len(records) // 2]
    changed = [
        ClassRecord(r.id, r.truth, [4], r.probability, r.rejected) if r is target else r
        for r in records
    ]
    again, _ = threshold.judge(changed)
    assert judged[target.id].rejected is again[target.id].rejected


def test_texts_out_of_scope_are_found_where_probabilities_tell():
    records = [record(i, 0, 0, 0.8) for i in range(20)]
    records += [ClassRecord(20 + i, [OUT_OF_SCOPE], [0], 0.2) for i in range(10)]
    judged, chosen = threshold.judge(records)
    assert 0.2 < chosen < 0.8
    assert OosRecall(CONFIG).score(judged) == InScopeAccuracy(CONFIG).score(judged) == 1.0


def test_changed_records_are_named_with_both_labels():
    base = [record(i, truth, 0, 0.9) for i, truth in enumerate([1, 0, 2, 0])]
    tuned = [
        record(i, *pair, 0.9) for i, pair in enumerate([(1, 1), (0, OUT_OF_SCOPE), (2, 1), (0, 0)])
    ]
    made = confusion.answers(
        results_of(classes=base),
        results_of(classes=tuned),
        CLASSES,
        "file:{}".format,
        "text {}".format,
    )
    sides = ("where", "prompt", "reference", "base", "tuned", "change")
    assert [tuple(line[side] for side in sides) for line in made] == [
        ("file:0", "text 0", "b", "a", "b", "better"),
        ("file:1", "text 1", "a", "a", "oos", "worse"),
        ("file:2", "text 2", "c", "a", "b", "changed"),
        ("file:3", "text 3", "a", "a", "a", "same"),
    ]
