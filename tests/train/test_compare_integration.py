"""`launcher compare` on real runs."""

from __future__ import annotations

import json

import pytest

from launcher.errors import ExitCode
from support import project
from support.project import LAUNCHER, Project

pytestmark = pytest.mark.slow

SCORED = (
    *("data.validation_share=0.5", "eval=default", "eval.metrics=[loss,exact_match,chrf]"),
    *("eval.max_new_tokens=8", "batch.sequences=4", "launch.processes=1"),
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with two runs that differ in their steps, and one with other held-out data."""
    made = Project(tmp_path_factory.mktemp("compare"))
    made.write_data(project.conversations(160))
    for name, words in {
        "short": ("train.steps=1",),
        "long": ("train.steps=60", "optim.lr=1e-2"),
        "other": ("train.steps=1", "data.validation_share=0.3"),
    }.items():
        done = made.run((*LAUNCHER, "train"), *made.words(name), *SCORED, *words)
        assert done.code == 0, done.output
    return made


def compare(here: Project, *words: str):
    return here.run((*LAUNCHER, "compare"), *words)


def test_a_longer_run_is_better_and_may_be_required_to_be(here):
    done = compare(here, "short", "long", "--require", "better", "--json")
    assert done.code == ExitCode.ok, done.output
    (made,) = json.loads(done.output[done.output.index("[") :])
    assert made["metrics"]["loss"]["verdict"] == "better"
    assert set(made["metrics"]) == {"loss", "exact_match", "chrf"}
    lengths = [part for part in made["slices"] if part["by"] == "length"]
    assert sum(part["records"] for part in lengths) == made["metrics"]["loss"]["records"]


def test_the_other_way_round_it_is_refused(here):
    done = compare(here, "long", "short", "--require", "not-worse")
    assert done.code == ExitCode.data, done.output
    assert "verdict: worse" in done.output


def test_a_run_against_its_base_gives_what_the_run_has_written(here):
    done = compare(here, "long:base", "long", "--json")
    (made,) = json.loads(done.output[done.output.index("[") :])
    written = json.loads((here.folder_of("long").eval / "comparison.json").read_text())
    for name, row in made["metrics"].items():
        for key in ("base", "tuned", "difference", "verdict", "improved"):
            assert row[key] == written["metrics"][name][key]
    assert made["slices"] == written["slices"]


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("short", "other"), ExitCode.data, "scored on other records"),
        (("short",), ExitCode.usage, "two runs are needed"),
        (("short", "lonng"), ExitCode.usage, "long"),
        (("short", "long:tuned"), ExitCode.usage, "RUN:base"),
    ],
)
def test_what_cannot_be_compared_is_refused(here, words, code, said):
    done = compare(here, *words)
    assert done.code == code
    assert said in done.output
    assert "HINT" in done.output
    assert "Traceback" not in done.output
