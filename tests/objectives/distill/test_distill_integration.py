"""Distillation by the real command: what it logs, scores and keeps, resumed and compared."""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from transformers import AutoTokenizer

from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from support.chats import chat
from support.models import make_llama
from support.project import LAUNCHER, Project, checkpoint_files, conversations, losses

pytestmark = pytest.mark.slow

TRAIN = (*LAUNCHER, "train")
STEPS = 4
WORDS = (
    *("objective=distill", "objective.teacher=teacher", "objective.alpha=0.6"),
    *("objective.temperature=1.5", "batch.sequences=4", "launch.processes=2", "batch.micro=1"),
    *("optim.lr=1e-2", "schedule=constant", "engine.precision=fp32", "peft=none"),
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    made = Project(tmp_path_factory.mktemp("distill"))
    made.write_data(conversations(60))
    sizes = {"hidden_size": 48, "num_hidden_layers": 3, "initializer_range": 0.3}
    make_llama(made.folder / "teacher", seed=1, **sizes)
    held_out = [chat(f"What is {n} + {n}?", f"It is {2 * n}.") for n in range(60, 70)]
    text = "".join(json.dumps(record) + "\n" for record in held_out)
    (made.folder / "held_out.jsonl").write_text(text)
    return made


@pytest.fixture(scope="module")
def first(here):
    """The run that is scored, exported and reported too."""
    more = ("eval=default", "data.validation=held_out.jsonl", "export.at_end=true", "engine=zero3")
    more += (f"train.steps={STEPS}", "checkpoint.every_steps=2")
    done = here.run(TRAIN, *here.words("first", *WORDS, *more))
    assert done.code == ExitCode.ok, done.output
    return here.folder_of("first"), done.output


def test_what_it_logs_and_scores(first):
    run, output = first
    assert "teacher  teacher (" in output
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    assert len(trained) == STEPS
    for line in trained:
        parts = 0.4 * line["cross_entropy"] + 0.6 * 1.5**2 * line["divergence"]
        assert line["loss"] == pytest.approx(parts, rel=1e-5)
        assert line["divergence"] > 0
    comparison = read_json(run.eval / "comparison.json")
    wanted = {"loss", "perplexity", "token_accuracy", "divergence"}
    assert comparison["metrics"].keys() == wanted
    assert all(comparison["metrics"][name]["records"] == 10 for name in ("loss", "divergence"))
    loss = comparison["metrics"]["loss"]
    assert np.exp(loss["tuned"]) == pytest.approx(comparison["metrics"]["perplexity"]["tuned"])
    assert (run.export / "config.json").is_file()


def test_a_run_that_goes_on_is_bit_equal(here, first):
    words = here.words("short", *WORDS, "engine=zero3", "checkpoint.every_steps=2")
    done = here.run(TRAIN, *words, "train.steps=2")
    assert done.code == ExitCode.ok, done.output
    done = here.run((*LAUNCHER, "resume"), "short", f"train.steps={STEPS}")
    assert done.code == ExitCode.ok, done.output
    found = checkpoint_files(here.folder_of("short"))
    assert found[STEPS] == checkpoint_files(first[0])[STEPS]
    # The same with another teacher would be no continuation.
    shutil.move(here.folder / "teacher", here.folder / "before")
    try:
        make_llama(here.folder / "teacher", seed=2)
        done = here.run((*LAUNCHER, "resume"), "short", f"train.steps={STEPS + 1}")
        assert done.code == ExitCode.usage, done.output
        assert "the weights of the teacher" in done.output
    finally:
        shutil.rmtree(here.folder / "teacher")
        shutil.move(here.folder / "before", here.folder / "teacher")


def test_what_is_kept_of_all_tokens_is_as_good_as_the_teacher_and_made_once(here, first):
    """And so in another cut of the batch."""
    count = len(AutoTokenizer.from_pretrained(here.model))
    more = ("eval=default", "data.validation=held_out.jsonl", f"train.steps={STEPS}")
    ways = {
        "kept": (*WORDS, "engine=zero3"),
        "again": (*WORDS, "engine=zero0", "launch.processes=1", "batch.micro=4"),
    }
    output = {}
    for name, words in ways.items():
        done = here.run(TRAIN, *here.words(name, *words, *more, f"objective.top_k={count}"))
        assert done.code == ExitCode.ok, done.output
        output[name] = done.output
        for part in ("loss", "cross_entropy", "divergence"):
            found, known = (losses(here.folder_of(one), part) for one in (name, "first"))
            assert found.keys() == known.keys()
            np.testing.assert_allclose(list(found.values()), list(known.values()), rtol=1e-5)
        found, known = (
            read_json(here.folder_of(one).eval / "comparison.json")["metrics"]
            for one in (name, "first")
        )
        for metric, row in known.items():
            for side in ("base", "tuned"):
                assert found[metric][side] == pytest.approx(row[side], rel=1e-4)
    assert "teacher  teacher, asked once before the first step" in output["kept"]
    for what in ("training records", "held-out records"):
        assert re.search(rf"reference: the teacher on \d+ {what}", output["kept"])
        assert f"{what}, " not in output["again"]
    done = here.run((*LAUNCHER, "eval"), "kept", "--json")
    assert done.code == ExitCode.ok, done.output
    scores = json.loads(done.output[done.output.index("{") :])
    assert scores["divergence"] == pytest.approx(found["divergence"]["tuned"], rel=1e-4)


def test_a_run_with_few_kept_tokens_goes_on_bit_equal(here):
    words = (*WORDS, "objective.top_k=5", "objective.divergence=jsd", "engine=zero2", "peft=lora")
    words = (*(word for word in words if word != "peft=none"), "checkpoint.every_steps=2")
    for name, steps in (("few", STEPS), ("fewer", 2)):
        done = here.run(TRAIN, *here.words(name, *words, f"train.steps={steps}"))
        assert done.code == ExitCode.ok, done.output
    done = here.run((*LAUNCHER, "resume"), "fewer", f"train.steps={STEPS}")
    assert done.code == ExitCode.ok, done.output
    found, known = (checkpoint_files(here.folder_of(name))[STEPS] for name in ("fewer", "few"))
    assert found == known
    far = losses(here.folder_of("few"), "divergence")
    assert all(0 < value < np.log(2) for value in far.values())  # what bounds it


def test_it_is_compared_with_plain_fine_tuning_and_scored_again(here, first):
    words = [word for word in WORDS if not word.startswith("objective")]
    more = ("eval=default", "data.validation=held_out.jsonl", "train.steps=2")
    done = here.run(TRAIN, *here.words("plain", *words, *more))
    assert done.code == ExitCode.ok, done.output
    done = here.run((*LAUNCHER, "compare"), "plain", "first", "--json")
    assert done.code == ExitCode.ok, done.output
    (made,) = json.loads(done.output[done.output.index("[") :])
    assert made["metrics"].keys() == {"loss", "perplexity", "token_accuracy"}
    done = here.run((*LAUNCHER, "compare"), "first:base", "first", "--json")
    (made,) = json.loads(done.output[done.output.index("[") :])
    assert "divergence" in made["metrics"]
    done = here.run((*LAUNCHER, "eval"), "first", "--json")
    assert done.code == ExitCode.ok, done.output
    scores = json.loads(done.output[done.output.index("{") :])
    tuned = read_json(first[0].eval / "comparison.json")["metrics"]
    for name in ("loss", "divergence"):
        assert scores[name] == pytest.approx(tuned[name]["tuned"], rel=1e-4)


def test_a_student_learns_more_of_few_records_with_a_teacher(tmp_path):
    made = Project(tmp_path, model=tmp_path)
    common = (
        *("model=tiny", "data.train=builtin:quickstart-chat", "data.max_length=256"),
        *("data.validation=builtin:quickstart-chat", "eval.limit=200", "engine=zero0"),
        *("batch.tokens=2048", "optim.lr=5e-3", "optim.beta2=0.99", "schedule.warmup=0.05"),
        *("launch.processes=1", "train.threads=1"),
    )
    small = (*common, "model.layers=1", "data.limit=200", "train.steps=80")
    taught = ("objective=distill", "objective.teacher=runs/teacher/export", "objective.alpha=0.9")
    for words in (
        (*common, "train.steps=150", "eval=none", "run.name=teacher"),
        (*small, "run.name=alone"),
        (*small, *taught, "objective.temperature=2", "run.name=taught"),
    ):
        done = made.run(TRAIN, *words)
        assert done.code == ExitCode.ok, done.output
    done = made.run((*LAUNCHER, "compare"), "alone", "taught", "--json", "--require", "better")
    assert done.code == ExitCode.ok, done.output
    (found,) = json.loads(done.output[done.output.index("[") :])
    loss = found["metrics"]["loss"]
    assert loss["verdict"] == "better"
    assert loss["tuned"] < 0.9 * loss["base"]
