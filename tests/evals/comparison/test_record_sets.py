"""Further held-out sets: forgetting, new examples, the gap to the training records."""

from __future__ import annotations

import json

import numpy as np
import pytest

from launcher.config.schema import EvalConfig
from launcher.core.rundir import RunDir
from launcher.evals.comparison.paired import Resampling
from launcher.evals.comparison.record_sets import compare_all, compare_further
from launcher.evals.metric import make_metrics, score_all
from launcher.evals.records import Generation, LossRecord, Results
from launcher.evals.store import read_results, write_comparison, write_results
from launcher.report.summary import beyond, flags, outcome
from launcher.scoring.evaluator import evenly
from support.results import results_of

METRICS = make_metrics(EvalConfig(metrics=["loss", "exact_match"]))
DRAWS = Resampling(count=500)


def losses(mean: float, count: int = 60, seed: int = 0) -> list[LossRecord]:
    noise = np.random.default_rng(seed).normal(0, 0.3, count)
    return [LossRecord(i, 10 * (mean + noise[i]), 10, 5) for i in range(count)]


def model(held_out: float, **further: float) -> Results:
    sets = {name: results_of(losses(loss, seed=len(name))) for name, loss in further.items()}
    return results_of(losses(held_out), further=sets)


def compared(base: Results, tuned: Results) -> dict:
    return compare_all(base, tuned, METRICS, {}, DRAWS)


def test_forgetting_is_flagged_and_leaves_the_verdict_as_it_is():
    made = compared(model(3.0, general=2.31), model(1.0, general=2.58))
    assert outcome(made) == "better"
    assert made["further"]["general"]["metrics"]["loss"]["verdict"] == "worse"
    (line,) = flags(made)
    assert line.startswith("forgetting: general loss 2.")
    assert line.endswith(", worse")
    table, last = beyond(made)
    assert table.startswith("general, not in the verdict\nmetric")
    assert last == line


def test_what_is_kept_is_not_flagged():
    made = compared(model(3.0, general=2.3), model(1.0, general=2.3))
    assert flags(made) == []
    assert made["further"]["general"]["metrics"]["loss"]["difference"] == 0


def test_a_new_set_is_named_by_its_name():
    further = [{"new.paraphrases": results_of(losses(loss))} for loss in (2.0, 2.5)]
    made = compared(*(results_of(losses(2.0), further=part) for part in further))
    assert [line.partition(" loss ")[0] for line in flags(made)] == ["new.paraphrases:"]


def test_only_sets_of_both_models_are_compared():
    made = compared(model(3.0, general=2.0), model(1.0))
    assert made["further"] == {}
    assert made["gap"] is None


@pytest.mark.parametrize(
    ("train", "verdict"), [(0.4, "worse"), (1.0, "no evidence"), (1.5, "better")]
)
def test_the_gap_is_what_training_records_are_better_by(train, verdict):
    gap = compared(model(3.0, train=3.0), model(1.0, train=train))["gap"]
    mean = {
        name: np.mean([r.loss_sum for r in losses(0, seed=s)]) / 10
        for name, s in (("held_out", 0), ("train", 5))
    }
    noise = mean["held_out"] - mean["train"]
    assert gap["base"] == pytest.approx(noise)
    assert gap["tuned"] == pytest.approx(1.0 - train + noise)
    assert gap["difference"] == pytest.approx(1.0 - train)
    assert gap["verdict"] == verdict
    assert gap["records"] == 60


def test_a_gap_that_grew_is_flagged_with_both_ends():
    (line,) = flags(compared(model(3.0, train=3.0), model(1.0, train=0.4)))
    assert line.startswith("gap: held-out loss minus that of training records ")
    assert "grown by +0.6000" in line


def test_the_interval_of_the_gap_covers_the_truth():
    """Of 100 pairs of models without growth about 5 are outside their 95 % interval."""
    rng = np.random.default_rng(1)
    outside = 0
    for seed in range(100):
        sides = []
        for _ in range(2):
            drawn = rng.normal(2, 0.5, (2, 50))
            held_out, seen = ([LossRecord(i, v, 1, 0) for i, v in enumerate(d)] for d in drawn)
            sides.append(results_of(held_out, further={"train": results_of(seen)}))
        gap = compare_further(*sides, METRICS, Resampling(seed, 400))["gap"]
        outside += not gap["interval"][0] <= 0 <= gap["interval"][1]
    assert outside <= 12


@pytest.mark.parametrize("count", [3, 29])
def test_few_records_have_no_gap(count):
    sides = [
        results_of(losses(2.0, count), further={"train": results_of(losses(seen, count))})
        for seen in (2.0, 1.0)
    ]
    assert compared(*sides)["gap"] is None


def test_other_training_records_and_nan_have_no_gap():
    base, tuned = model(3.0, train=3.0), model(1.0, train=0.4)
    other = results_of(
        tuned.losses, further={"train": results_of(tuned.further["train"].losses[1:])}
    )
    assert compared(base, other)["gap"] is None
    diverged = [LossRecord(i, float("nan"), 10, 0) for i in range(60)]
    assert compared(base, results_of(diverged, further=tuned.further))["gap"] is None


def test_further_results_come_back_from_disk_and_into_the_comparison(tmp_path):
    base, tuned = model(3.0, general=2.0, train=3.0), model(1.0, general=2.5, train=0.5)
    answers = [Generation(0, "g.jsonl:1", "q", "yes", "no")]
    base.further["general"].passes["generation"] = answers
    path = tmp_path / "base.json"
    scores = write_results(path, base, METRICS)
    assert read_results(path) == base
    assert set(scores) == {"loss", "general/loss", "general/exact_match", "train/loss"}
    assert scores == score_all(METRICS, base)
    del base.further["general"].passes["generation"]
    run = RunDir(tmp_path)
    write_comparison(run, base, tuned, METRICS, {}, resampling=DRAWS)
    written = json.loads((run.eval / "comparison.json").read_text())
    assert set(written["further"]) == {"general"}
    assert written["gap"]["verdict"] == "worse"


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [(10, 3, [0, 3, 6]), (3, 10, [0, 1, 2]), (0, 5, []), (5, 0, []), (4, 4, [0, 1, 2, 3])],
)
def test_training_records_are_spread_evenly(count, most, expected):
    assert evenly(count, most) == expected
