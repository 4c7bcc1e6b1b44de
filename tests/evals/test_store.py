"""Results on disk: nothing is lost, damage is noticed, files are what the report reads."""

import json
import math
from dataclasses import replace

import pytest

from launcher.config.schema import EvalConfig
from launcher.core.rundir import RunDir
from launcher.evals.comparison.paired import compare
from launcher.evals.metric import make_metrics
from launcher.evals.records import Generation, LossRecord, Results
from launcher.evals.store import (
    cache_path,
    predictions,
    read_results,
    write_comparison,
    write_predictions,
    write_results,
)
from launcher.report import build
from launcher.report.summary import sentence, table
from support.results import results_of

METRICS = make_metrics(
    EvalConfig(metrics=["loss", "token_accuracy", "exact_match"], answer_pattern="#### ([0-9]+)")
)


def results(scale: float, answer: str) -> Results:
    return results_of(
        [LossRecord(i, scale * (i + 1) / 3, i + 2, i) for i in range(8)],
        [
            Generation(i, f"a.jsonl:{i + 1}", 'say "ü"\n</script>', f"#### {i}", answer.format(i))
            for i in range(8)
        ],
    )


def test_results_come_back_as_they_were(tmp_path):
    path = tmp_path / "eval" / "base.json"
    before = results(1.1, "#### {}")
    scores = write_results(path, before, METRICS, model="tiny", step=7)
    assert read_results(path) == before
    raw = json.loads(path.read_text())
    assert raw["metrics"] == scores
    assert scores["exact_match"] == 1.0
    assert (raw["records"], raw["generated"], raw["model"], raw["step"]) == (8, 8, "tiny", 7)


def test_a_comparison_can_be_made_again_from_disk(tmp_path):
    base, tuned = results(1.0, "?"), results(0.7, "#### {}")
    for name, side in (("base", base), ("tuned", tuned)):
        write_results(tmp_path / f"{name}.json", side, METRICS)
    again = [read_results(tmp_path / f"{name}.json") for name in ("base", "tuned")]
    assert compare(*again, METRICS) == compare(base, tuned, METRICS)


def test_nan_stays_out_of_the_file_and_comes_back(tmp_path):
    path = tmp_path / "tuned.json"
    assert write_results(path, results_of([LossRecord(0, math.nan, 3, 0)]), METRICS)["loss"] is None
    assert "NaN" not in path.read_text()
    assert math.isnan(read_results(path).losses[0].loss_sum)


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"version": 0}', '{"version": 1}'])
def test_damaged_results_are_no_results(tmp_path, damage):
    path = tmp_path / "base.json"
    assert read_results(path) is None
    path.write_text(damage)
    assert read_results(path) is None


def test_unequal_columns_are_damage(tmp_path):
    path = tmp_path / "base.json"
    write_results(path, results(1.0, ""), METRICS)
    raw = json.loads(path.read_text())
    raw["passes"]["loss"]["correct"].pop()
    path.write_text(json.dumps(raw))
    assert read_results(path) is None


def test_base_results_are_cached_under_the_cache_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path))
    write_results(cache_path("abc"), results(1.0, ""), METRICS)
    assert (tmp_path / "base-eval" / "abc.json").is_file()
    assert read_results(cache_path("abc")) == results(1.0, "")


def test_comparison_and_predictions_are_written(tmp_path):
    run = RunDir(tmp_path)
    written = write_comparison(run, results(1.0, "?"), results(0.7, "#### {}"), METRICS, {})
    assert json.loads((run.eval / "comparison.json").read_text()) == written
    assert written["metrics"]["exact_match"]["difference"] == 1.0
    lines = (run.eval / "predictions.jsonl").read_text().splitlines()
    assert len(lines) == 8
    assert json.loads(lines[3]) == {
        "id": 3,
        "where": "a.jsonl:4",
        "prompt": 'say "ü"\n</script>',
        "reference": "#### 3",
        "base": "?",
        "tuned": "#### 3",
        "base_match": False,
        "tuned_match": True,
        "change": "better",
        "judge": None,
    }


def test_what_changed_follows_a_metric_that_judges_pairs():
    asked = [Generation(i, "d:1", "q", f"Ahoy, it is {i}!", f"It is {i}.") for i in range(40)]
    spoken = [replace(record, answer=record.reference) for record in asked]
    metrics = make_metrics(EvalConfig(metrics=["style_classifier"]))
    lines = predictions(results_of(generations=asked), results_of(generations=spoken), metrics)
    assert {line["change"] for line in lines} == {"better"}


def test_predictions_without_a_base_or_a_judge(tmp_path):
    run = RunDir(tmp_path)
    write_predictions(run, predictions(None, results(1.0, "#### {}"), METRICS[:1]))
    line = json.loads((run.eval / "predictions.jsonl").read_text().splitlines()[0])
    assert line["base"] is line["base_match"] is line["tuned_match"] is None


def test_what_is_written_can_be_told_in_words_and_shown(tmp_path):
    run = RunDir(tmp_path)
    written = write_comparison(run, results(1.0, "?"), results(0.7, "#### {}"), METRICS, {})
    assert "better than the base: exact_match went from 0.0 % to 100.0 %" in sentence(written)
    assert [line.split()[0] for line in table(written).splitlines()] == [
        "metric",
        *written["metrics"],
    ]
    html = build(run).read_text()
    assert sentence(written) in html
    assert html.count('class="sample"') == 8
