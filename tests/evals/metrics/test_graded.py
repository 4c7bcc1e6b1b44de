"""Graders as metrics: scored record by record, with intervals, and wrong data found beforehand."""

from __future__ import annotations

import json
import math

import pytest

from launcher.config.schema import EvalConfig, JudgeConfig
from launcher.core.errors import ConfigError, DataError, ExitCode
from launcher.evals.comparison.paired import Resampling, compare
from launcher.evals.metric import make_metrics, score_all, score_draws
from launcher.evals.records import Generation, TokenizedPrompt
from support.endpoint import serve
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
    assert (made.name, made.path) == ("grader:my.yaml", str(path))
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


def draws_of(*answers):
    """An answer a draw, to records whose reference is 3."""
    return [
        [Generation(i, "d:1", "q", "3", answer) for i, answer in enumerate(own)] for own in answers
    ]


def test_draws_are_scored_together_whichever_answers_have_a_score(tmp_path):
    path = tmp_path / "both.yaml"
    number = {"type": "numeric_match", "name": "n", "reference": "3"}
    apart = {"type": "string_check", "name": "s", "input": "{{ sample.output_text }}"}
    apart |= {"reference": "?", "operation": "ne"}
    form = {"type": "multi", "name": "m", "graders": {"n": number, "s": apart}}
    path.write_text(json.dumps({**form, "calculate_output": "n / s"}))
    (metric,) = make_metrics(EvalConfig(metrics=[f"grader:{path}"]))
    # Of the first draw one answer counts, of the second none, of the third two.
    draws = draws_of(["3", "?"], ["?", "?"], ["4", "4"])
    assert score_draws([metric], draws) == {metric.name: pytest.approx(1 / 3)}
    assert math.isnan(score_draws([metric], draws[1:2])[metric.name])


def test_a_judge_that_was_away_is_asked_again_by_the_next_evaluation(tmp_path, monkeypatch):
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    path, replies = tmp_path / "judge.yaml", iter([(401, {}), "Score: 0.5"])
    question = [{"role": "user", "content": "{{ sample.output_text }}"}]
    form = {"type": "score_model", "name": "j", "model": "m", "input": question}
    path.write_text(json.dumps(form))
    with serve(lambda *_: next(replies)) as served:
        options = EvalConfig(metrics=[f"grader:{path}"], judge=JudgeConfig(url=served.url))
        (metric,) = make_metrics(options)
        found = [score_draws([metric], draws_of(["3"], ["3"])) for _ in range(2)]
    assert math.isnan(found[0][metric.name])
    assert found[1] == {metric.name: 0.5}
    assert len(served.requests) == 2  # the same answer of two draws is asked once
    assert metric.notes() == []


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


def test_calls_of_tools_are_read_by_who_knows_how_they_are_written(data, tmp_path):
    path = tmp_path / "calls.yaml"
    name = "{{ sample.output_tools[0].function.name }}"
    path.write_text(GRADER.replace("{{ sample.output_text }}", name))
    (metric,) = make_metrics(EvalConfig(metrics=[f"grader:{path}"]))
    answered = results(data, lambda i: f"a:{i}")
    assert score_all([metric], answered) == {metric.name: 0.0}
    (metric,) = make_metrics(EvalConfig(metrics=[f"grader:{path}"]))
    metric.calls = lambda record, text: [{"function": {"name": f"{record['kind']}:{text[2:]}"}}]
    assert score_all([metric], answered) == {metric.name: 1.0}


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
