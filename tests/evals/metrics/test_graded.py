"""Graders as metrics: scored record by record, with intervals, and wrong data found beforehand."""

from __future__ import annotations

import json

import pytest

from launcher.config.schema import EvalConfig
from launcher.core.errors import ConfigError, DataError, ExitCode
from launcher.evals.comparison.paired import Resampling, compare
from launcher.evals.metric import make_metrics, score_all
from launcher.evals.records import Generation, TokenizedPrompt
from support.project import LAUNCHER, Project
from support.results import results_of

GRADER = """
type: string_check
name: same
input: "{{ sample.output_text }}"
reference: "{{ item.kind }}:{{ item.reference }}"
operation: eq
"""


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "data.jsonl"
    lines = [{"question": f"q{i}", "kind": "ab"[i % 2]} for i in range(20)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def metric(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(GRADER)
    (made,) = make_metrics(EvalConfig(metrics=[f"grader:{path}"]))
    assert made.name == f"grader:{path}"
    return made


def results(data, answer):
    return results_of(
        generations=[
            Generation(i, f"{data}:{i + 1}", f"q{i}", str(i), answer(i)) for i in range(20)
        ]
    )


def test_a_grader_is_scored_and_compared_like_any_metric(data, metric):
    base = results(data, lambda i: f"a:{i}")
    tuned = results(data, lambda i: f"{'ab'[i % 2]}:{i}")
    assert score_all([metric], base) == {metric.name: 0.5}
    row = compare(base, tuned, [metric], Resampling(count=500))["metrics"][metric.name]
    assert (row["base"], row["tuned"], row["unit"]) == (0.5, 1.0, "share")
    assert (row["improved"], row["worsened"], row["verdict"]) == (10, 0, "better")
    assert 0 < row["interval"][0] < row["interval"][1] < 1


def test_answers_without_a_score_do_not_count_and_are_told(tmp_path, data):
    path = tmp_path / "number.yaml"
    path.write_text("type: numeric_match\nname: n\nreference: '{{ item.reference }}'\n")
    (metric,) = make_metrics(EvalConfig(metrics=[f"grader:{path}"]))
    made = results_of(
        generations=[Generation(i, "d:1", "q", r, "3") for i, r in enumerate(["3", "4", "none"])]
    )
    assert metric.score(made.generations) == 0.5
    assert "1 of 3 answers have no score, e.g. invalid_variable_error" in metric.notes()[0]


@pytest.mark.slow
def test_what_takes_long_gives_signs_of_life(tmp_path):
    path = tmp_path / "slow.yaml"
    source = "import time\\ndef grade(sample, item):\\n  time.sleep(1.2)\\n  return 1"
    path.write_text(f'type: python\nname: slow\nsource: "{source}"\n')
    (metric,) = make_metrics(EvalConfig(metrics=[f"grader:{path}"]))
    signs = []
    metric.sign_of_life = lambda: signs.append(None)
    records = [Generation(i, "d:1", "q", "", "") for i in range(2)]
    assert metric.score(records) == 1
    assert signs


def test_fields_that_records_lack_are_found_before_there_are_answers(data, metric):
    prompts = [TokenizedPrompt(i, [1], str(i), f"{data}:{i + 1}") for i in range(20)]
    metric.check(prompts)
    elsewhere = [TokenizedPrompt(0, [1], "0", "data.parquet:1")]
    with pytest.raises(DataError, match="data.parquet:1: no field item.kind"):
        metric.check(elsewhere)


def test_what_its_scores_depend_on_is_the_content_of_the_file(tmp_path, metric):
    path = tmp_path / "my.yaml"
    path.write_text(GRADER.replace("eq", "ne"))
    (changed,) = make_metrics(EvalConfig(metrics=[f"grader:{path}"]))
    assert changed.name == metric.name
    assert changed.state != metric.state


def test_a_file_that_is_no_grader_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.yaml"):
        make_metrics(EvalConfig(metrics=[f"grader:{tmp_path}/none.yaml"]))


@pytest.mark.slow
def test_a_run_stops_before_it_begins_where_records_lack_a_field(tmp_path):
    made = Project(tmp_path)
    made.write_data([{"prompt": f"{n} + 1?", "completion": f"{n + 1}"} for n in range(20)])
    (tmp_path / "g.yaml").write_text(
        "type: numeric_match\nname: n\nreference: '{{ item.solution }}'\n"
    )
    words = ("data=prompt", "eval=default", "data.validation_share=0.3", "train.steps=1")
    absent = made.words("absent", *words, "eval.metrics=[grader:none.yaml]")
    refused = made.run((*LAUNCHER, "plan"), *absent)
    assert refused.code == ExitCode.usage
    assert "none.yaml: cannot be read" in refused.output
    done = made.run((*LAUNCHER, "train"), *made.words("r", *words, "eval.metrics=[grader:g.yaml]"))
    assert done.code == ExitCode.data
    assert "no field item.solution, which the grader n reads" in done.output
    assert "it has completion, prompt, reference" in done.output
