"""A reward that rises while another measure falls is flagged, in runs from data to report."""

from __future__ import annotations

import json
from typing import Any

import pytest

from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from support.models import make_llama
from support.project import DIRECT, Project

pytestmark = pytest.mark.slow

LETTERS = "aeiou"
COMMON = (
    *("data.train=data.jsonl", "data.max_length=64", "data.workers=1", "data.cache=cache"),
    *("peft=none", "schedule=constant", "optim.lr=3e-3", "engine.precision=fp32"),
    *("train.threads=1", "train.log_every_steps=1"),
)
REINFORCED = (
    *("objective=grpo", "objective.grader=reward.yaml", "objective.group_size=4", "seed=3"),
    *("objective.max_new_tokens=4", "eval.max_new_tokens=4", "batch.sequences=32"),
    *("optim.eps=1e-4", "train.steps=24", "export.at_end=false"),
)


def questions(numbers: range, answer: str | None = None) -> list[dict[str, Any]]:
    asked = ((LETTERS[i % len(LETTERS)], i) for i in numbers)
    return [{"prompt": f"Say {one} {i}.", "completion": answer or one} for one, i in asked]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a model that says the letter it is asked for, often; and a reward for `e`."""
    folder = tmp_path_factory.mktemp("watched")
    made = Project(folder, make_llama(folder / "model"))
    made.write_data(questions(range(64)))
    made.write_data(questions(range(64, 112)), "held.jsonl")
    made.write_data(questions(range(64, 112), "e"), "e.jsonl")
    wire = {"type": "string_check", "name": "e", "input": "{{sample.output_text}}"}
    wire |= {"reference": "e", "operation": "eq"}
    (folder / "reward.yaml").write_text(json.dumps(wire))
    words = ("objective=sft", "train.steps=40", "batch.sequences=16", "run.name=start")
    start(made, f"model.name={made.model}", *words, "data.validation_share=0", "eval=none")
    return made


def start(here: Project, *words: str) -> str:
    done = here.run(DIRECT, *COMMON, *words)
    assert done.code == ExitCode.ok, done.output
    return done.output


def reinforced(here: Project, name: str, held_out: str, *metrics: str) -> tuple[RunDir, str]:
    words = (f"run.name={name}", f"data.validation={held_out}", "model.name=runs/start/export")
    listed = ",".join(("loss", "exact_match", *metrics))
    said = start(here, *REINFORCED, *words, f"eval.metrics=[{listed}]")
    return here.folder_of(name), said


@pytest.mark.parametrize("metrics", [("grader:reward.yaml",), ()], ids=["held-out", "drawn"])
def test_a_reward_that_rises_while_a_measure_falls_is_flagged(here, metrics):
    """By the grader as a metric, and where it is none by the scores of drawn answers."""
    run, said = reinforced(here, f"flagged-{len(metrics)}", "held.jsonl", *metrics)
    found = read_json(run.eval / "comparison.json")["watch"]
    reward = found["reward"]
    assert reward["name"] == (metrics or ("score",))[0]
    assert reward["interval"][0] > 0
    assert found["falls"] == found["others"] == ["exact_match"]
    assert 1 <= len(found["examples"]) <= 5
    for one in found["examples"]:
        assert one["base"] == one["reference"] != one["tuned"]
        assert (one["values"], one["reward"]) == ([1.0, 0.0], [0.0, 1.0])
        assert one["where"].startswith("held.jsonl:")
    assert f"warning: reward hacking? {reward['name']} rises from" in said
    page = run.report.read_text()
    assert 'id="hacking"' in page
    assert found["examples"][0]["where"] in page


def test_a_reward_that_rises_with_the_other_measures_is_not(here):
    run, said = reinforced(here, "fine", "e.jsonl", "grader:reward.yaml")
    comparison = read_json(run.eval / "comparison.json")
    verdicts = {name: row["verdict"] for name, row in comparison["metrics"].items()}
    assert verdicts["exact_match"] == verdicts["grader:reward.yaml"] == "better"
    assert comparison["watch"]["falls"] == comparison["watch"]["examples"] == []
    assert "reward hacking" not in said
    page = run.report.read_text()
    assert 'id="hacking"' not in page
    assert "nothing got worse with it" in page
    assert 'id="drawn"' in page
