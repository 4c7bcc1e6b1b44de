"""Runs on records that only ask: the grader reads what else stands in them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.rollouts.journal import RolloutJournal
from support.models import make_llama
from support.project import DIRECT, LAUNCHER, Project

pytestmark = pytest.mark.slow

WIRE = {"type": "string_check", "name": "has", "input": "{{sample.output_text}}"}
WIRE |= {"reference": "{{item.letter}}", "operation": "ilike"}
WORDS = (
    *("objective=grpo", "objective.grader=grader.yaml", "objective.group_size=4"),
    *(
        "objective.max_new_tokens=6",
        "batch.sequences=16",
        "train.steps=2",
        "data.train=asked.jsonl",
    ),
    *("data.max_length=64", "data.workers=1", "data.cache=cache", "peft=none", "seed=3"),
    *("engine.precision=fp32", "train.threads=1", "export.at_end=false", "eval.max_new_tokens=6"),
)
ALONE = ("eval=none", "data.validation_share=0")
GRADED = ("data.validation=asked.jsonl", "eval.metrics=[grader:grader.yaml,distinct]")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("questions")
    made = Project(folder, make_llama(folder / "model", initializer_range=0.1))
    asked = [{"prompt": f"Say {'aeiou'[i % 5]} {i}.", "letter": "e"} for i in range(16)]
    made.write_data(asked, "asked.jsonl")
    talks = [{"messages": [{"role": "user", "content": own["prompt"]}], **own} for own in asked]
    made.write_data(({**own, "prompt": None} for own in talks), "talks.jsonl")
    made.write_data(({**own, "completion": "e"} for own in asked), "answered.jsonl")
    (folder / "grader.yaml").write_text(json.dumps(WIRE))
    return made


def run(here: Project, name: str, *words: str, command: Any = DIRECT) -> tuple[int, str]:
    model = f"model.name={here.model}"
    done = here.run(command, model, f"run.name={name}", *WORDS, *words)
    return done.code, done.output


def drawn(run: RunDir) -> list[tuple[str, list[int], float | None]]:
    answers = RolloutJournal(run).read(0) or []
    return [(own.prompt, own.prompt_tokens, own.score) for own in answers]


def test_questions_are_asked_as_those_are_that_have_an_answer(here):
    """What a run draws and learns does not depend on whether somebody has written answers."""
    found = []
    for name in ("asked", "talks", "answered"):
        code, said = run(here, name, f"data.train={name}.jsonl", *ALONE)
        assert code == ExitCode.ok, said
        found.append(drawn(here.folder_of(name)))
        assert ("16 without an answer" in said) is (name != "answered")
    assert found[0] == found[1] == found[2]
    assert {score for *_, score in found[0]} == {0.0, 1.0}


def test_held_out_questions_are_graded_alone(here):
    code, said = run(here, "graded", *GRADED)
    assert code == ExitCode.ok, said
    folder = here.folder_of("graded")
    comparison = read_json(folder.eval / "comparison.json")
    assert list(comparison["metrics"]) == ["grader:grader.yaml", "distinct"]
    assert comparison["metrics"]["grader:grader.yaml"]["records"] == 16
    assert comparison["gap"] is None
    lines = (folder.eval / "predictions.jsonl").read_text().splitlines()
    assert {json.loads(line)["reference"] for line in lines} == {""}
    assert "without an answer" in folder.report.read_text()


def test_graders_measure_several_answers_to_each_held_out_question_on_the_way(here):
    (here.folder / "plain.yaml").write_text(json.dumps({**WIRE, "name": "plain"}))
    words = ("eval.metrics=[grader:plain.yaml,distinct]", "eval.every_steps=1", "eval.draws=3")
    code, said = run(here, "drawn", *GRADED, *words, "eval.temperature=1", "data=question",
                     "data.train=talks.jsonl", "data.validation=talks.jsonl")  # fmt: skip
    assert code == ExitCode.ok, said
    folder = here.folder_of("drawn")
    lines = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    seen = [(own["step"], own["eval/grader:plain.yaml"]) for own in lines if len(own) > 4
            and own["kind"] == "eval"]  # fmt: skip
    assert [step for step, _ in seen] == [1, 2]
    # Means over three answers to each of 16 questions, not the one that the comparison is of.
    assert all((48 * score) == pytest.approx(round(48 * score)) for _, score in seen)
    assert any((16 * score) != pytest.approx(round(16 * score)) for _, score in seen)
    compared = read_json(folder.eval / "comparison.json")["metrics"]["grader:plain.yaml"]
    assert 0 <= compared["tuned"] <= 1


def test_several_answers_without_a_temperature_are_refused(here):
    code, said = run(here, "same", *GRADED, "eval.draws=2", command=(*LAUNCHER, "train"))
    assert code == ExitCode.usage
    assert "eval.draws: 2 without eval.temperature" in said


def test_a_copy_of_the_data_shares_what_was_prepared_and_is_read_where_it_stands(here):
    """The prepared folder was made of another file, which is gone by now."""
    asked = (here.folder / "talks.jsonl").read_text().replace('"letter": "e"', '"letter": "a"')
    scores = []
    for name in ("first", "second"):
        file = here.folder / name / "asked.jsonl"
        file.parent.mkdir()
        file.write_text(asked)
        path = f"{name}/asked.jsonl"
        words = (f"data.train={path}", f"data.validation={path}", "train.steps=1")
        code, said = run(here, f"copy-{name}", *GRADED, *words)
        assert code == ExitCode.ok, said
        file.unlink()
        folder = here.folder_of(f"copy-{name}")
        wheres = {own.where for own in RolloutJournal(folder).read(0) or []}
        assert all(where.startswith(f"{path}:") for where in wheres)
        rows = read_json(folder.eval / "comparison.json")["metrics"]
        scores.append(rows["grader:grader.yaml"])
    assert scores[0] == scores[1]
    prepared = [read_json(here.folder_of(f"copy-{name}").data) for name in ("first", "second")]
    assert prepared[0] == prepared[1]


def test_metrics_that_compare_with_an_answer_are_refused_where_there_is_none(here):
    code, said = run(here, "compared", "data.validation=asked.jsonl", command=(*LAUNCHER, "train"))
    assert code == ExitCode.data, said
    assert "16 of 16 held-out records have no answer" in said
    assert "loss, perplexity, token_accuracy compare" in said
    hint = said.partition("HINT: '")[2].partition("'")[0]
    assert hint.startswith("eval.metrics=[grader:")
    code, said = run(here, "compared-again", "data.validation=asked.jsonl", hint)
    assert code == ExitCode.ok, said


def test_held_out_answers_are_measured_beside_questions_without_any(here):
    """And no loss of training records is held against theirs: there is none."""
    metrics = "eval.metrics=[loss,exact_match,grader:grader.yaml]"
    code, said = run(here, "beside", "data.validation=answered.jsonl", metrics)
    assert code == ExitCode.ok, said
    comparison = read_json(here.folder_of("beside").eval / "comparison.json")
    assert {"loss", "exact_match"} < comparison["metrics"].keys()
    assert comparison["gap"] is None


def test_a_grader_that_reads_the_answer_is_told_before_the_run_that_there_is_none(here):
    wire = {**WIRE, "reference": "{{item.reference}}"}
    (here.folder / "reference.yaml").write_text(json.dumps(wire))
    code, said = run(here, "lacking", "objective.grader=reference.yaml", "eval=none")
    assert code == ExitCode.data, said
    assert "asked.jsonl:1: no field item.reference, which the grader has reads" in said
    code, said = run(
        here,
        "there",
        "objective.grader=reference.yaml",
        "eval=none",
        "train.steps=1",
        "data.train=answered.jsonl",
    )
    assert code == ExitCode.ok, said


def test_others_are_told_what_they_lack(here):
    done = here.run(
        DIRECT,
        f"model.name={here.model}",
        "run.name=sft",
        "objective=sft",
        "data.train=asked.jsonl",
        "data.cache=cache",
        "eval=none",
        "train.steps=1",
    )
    assert done.code == ExitCode.data, done.output
    assert "no known format has the fields of this record: 'prompt', 'letter'" in done.output
