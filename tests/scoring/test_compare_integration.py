"""`launcher compare` on real runs."""

from __future__ import annotations

import json
import shutil

import pytest

from launcher.core.errors import ExitCode
from support import project
from support.chats import chat
from support.project import LAUNCHER, Project

pytestmark = pytest.mark.slow

SCORED = (
    *("data.validation_share=0.5", "eval=default", "eval.metrics=[loss,exact_match,chrf]"),
    *("eval.max_new_tokens=8", "batch.sequences=4", "launch.processes=1"),
    *("eval.slices=[level]", "data.gate=[leakage]"),
    *("eval.general=general.jsonl", "eval.new.asked_otherwise=new.jsonl", "seed=3"),
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with two runs that differ in their steps, and one with other held-out data."""
    made = Project(tmp_path_factory.mktemp("compare"))
    texts = [{"text": f"On day {n} the cat sat on the mat and slept."} for n in range(40)]
    for name, records in {
        "general": texts,
        "new": [chat(f"Double {n}!", f"It is {2 * n}.") for n in range(160, 200)],
    }.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (made.folder / f"{name}.jsonl").write_text(lines)
    records = project.conversations(160)
    made.write_data([{**record, "level": f"level {i % 2}"} for i, record in enumerate(records)])
    for name, words in {
        "short": ("train.steps=1", "export.at_end=true"),
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
    levels = [part for part in made["slices"] if part["by"] == "level"]
    assert {part["value"] for part in levels} == {"level 0", "level 1"}
    for parts in (lengths, levels):
        assert sum(part["records"] for part in parts) == made["metrics"]["loss"]["records"]


def test_the_page_shows_the_comparison(here):
    done = compare(here, "short", "long", "--html", "pages/page.html")
    assert done.code == ExitCode.ok, done.output
    page = (here.folder / "pages" / "page.html").read_text()
    assert "long is better than short" in page
    assert "no held-out record was found in the training data" in page
    assert "level 0" in page


def test_the_other_way_round_it_is_refused(here):
    done = compare(here, "long", "short", "--require", "not-worse")
    assert done.code == ExitCode.data, done.output
    assert "verdict: worse" in done.output


def test_a_run_against_its_base_gives_what_the_run_has_written(here):
    done = compare(here, "long:base", "long", "--json")
    (made,) = json.loads(done.output[done.output.index("[") :])
    written = json.loads((here.folder_of("long").eval / "comparison.json").read_text())
    assert made["seed"] == 3
    # To the last digit: the same function has drawn the same records.
    for key in ("metrics", "slices", "further", "gap", "seed", "resamples", "notes"):
        assert made[key] == written[key]


def test_further_sets_are_scored_beside_the_held_out_records(here):
    written = json.loads((here.folder_of("long").eval / "comparison.json").read_text())
    # Plain text has no answers; the other set has, and is asked.
    assert set(written["further"]["general"]["metrics"]) == {"loss"}
    assert written["further"]["general"]["metrics"]["loss"]["records"] == 40
    new = written["further"]["new.asked_otherwise"]["metrics"]
    assert new["exact_match"]["records"] == 40
    assert new["loss"]["verdict"] == "better"
    assert written["gap"]["records"] == written["metrics"]["loss"]["records"]
    log = here.folder_of("long").log(1, 0).read_text()
    assert "general, not in the verdict" in log


def test_a_further_set_is_scored_with_a_model_that_is_loaded_again(here):
    done = here.run((*LAUNCHER, "eval"), "long", "--json")
    assert done.code == 0, done.output
    scores = json.loads(done.output[done.output.index("{\n") :])
    stored = json.loads((here.folder_of("long").eval / "tuned.json").read_text())["metrics"]
    assert scores == pytest.approx(stored, abs=1e-5)
    assert {"general/loss", "new.asked_otherwise/chrf", "train/loss"} <= set(scores)


def test_training_records_of_other_data_are_not_compared(here):
    (here.folder / "more.jsonl").write_text((here.folder / "data.jsonl").read_text() * 2)
    words = (*SCORED[1:], "data.validation=new.jsonl", "train.steps=1", "eval.slices=[]")
    for name, file in {"one": "data.jsonl", "two": "more.jsonl"}.items():
        done = here.run((*LAUNCHER, "train"), *here.words(name), *words, f"data.train={file}")
        assert done.code == 0, done.output
    done = compare(here, "one", "two", "--json")
    (made,) = json.loads(done.output[done.output.index("[") :])
    assert made["gap"] is None
    assert set(made["further"]) == {"general", "new.asked_otherwise"}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("short", "other"), ExitCode.data, "scored on other records"),
        (("short",), ExitCode.usage, "two models are needed"),
        (("short", "lonng"), ExitCode.usage, "long"),
        (("short", "long:tuned"), ExitCode.usage, "RUN:base"),
        (("short", "long:7"), ExitCode.usage, "no valid checkpoint of step 7"),
        (("model", "model"), ExitCode.usage, "a run must be among them"),
    ],
)
def test_what_cannot_be_compared_is_refused(here, words, code, said):
    done = compare(here, *words)
    assert done.code == code
    assert said in done.output
    assert "HINT" in done.output
    assert "Traceback" not in done.output


def test_checkpoints_and_folders_are_scored_as_their_runs_are(here):
    done = compare(here, "short", "short:1", "runs/short/export", "model", "--json")
    assert done.code == ExitCode.ok, done.output
    made = json.loads(done.output[done.output.index("[\n") :])
    for same in made[:2]:
        assert same["metrics"]["loss"]["difference"] == pytest.approx(0, abs=1e-5)
        assert same["metrics"]["exact_match"]["difference"] == 0
    base = json.loads((here.folder_of("short").eval / "base.json").read_text())["metrics"]
    assert made[2]["metrics"]["loss"]["tuned"] == pytest.approx(base["loss"], abs=1e-5)


def test_a_folder_with_another_chat_template_is_refused(here):
    other = shutil.copytree(here.folder / "model", here.folder / "other-template")
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (other / "chat_template.jinja").write_text(template)
    done = compare(here, "short", "other-template")
    assert done.code == ExitCode.data, done.output
    assert "another chat template than that of short" in done.output
