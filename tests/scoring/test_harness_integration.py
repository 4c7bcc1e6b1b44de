"""`launcher eval RUN --lm-eval`: lm-eval's own scores of tuned and base, without network."""

from __future__ import annotations

import importlib.util
import json
import weakref

import pytest

from launcher.cli import models
from launcher.config.compose import compose
from launcher.core.errors import ConfigError, ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.scoring import harness
from support import project
from support.configs import make_config
from support.project import LAUNCHER, Project

INSTALLED = importlib.util.find_spec("lm_eval") is not None

CHOICE = """\
task: sums
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "What is {{{{n}}}} + {{{{n}}}}?"
doc_to_choice: ["It is {{{{two}}}}.", "It is no number."]
doc_to_target: 0
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""
FREE = """\
task: free_sums
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: generate_until
doc_to_text: "What is {{{{n}}}} + {{{{n}}}}?"
doc_to_target: "It is {{{{two}}}}."
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.mark.skipif(INSTALLED, reason="lm-eval is installed")
def test_without_the_library_the_extra_is_named(tmp_path):
    compose.save(make_config(), tmp_path / "config.yaml")
    with pytest.raises(ConfigError, match=r"needs lm_eval(?s:.)*pip install .lm-eval"):
        harness.evaluate(RunDir(tmp_path), ["arc_easy"], ["tuned"])


def test_a_classifier_is_refused(tmp_path):
    run = RunDir(tmp_path)
    compose.save(make_config(objective={"name": "classify"}), run.config)
    with pytest.raises(ConfigError, match=r"classifier(?s:.)*HINT"):
        harness.evaluate(run, ["arc_easy"], ["tuned"])


@pytest.mark.parametrize("words", [("--lm-eval", "x", "--vllm"), ("--base", "--checkpoint", "4")])
def test_options_of_which_one_would_be_ignored_are_refused(words):
    with pytest.raises(ConfigError, match=rf"{words[0]}(?s:.)*HINT"):
        models.evaluate(["run", *words])


def test_a_task_file_is_looked_for_where_the_user_is(tmp_path, monkeypatch):
    handed_on = []
    monkeypatch.setattr(models, "_become", lambda module, parsed: handed_on.append(parsed.lm_eval))
    monkeypatch.chdir(tmp_path)
    models.evaluate(["run", "--lm-eval", "sub/my.yaml,arc_easy", "--lm-eval", "/a/b.yml"])
    assert handed_on == [[str(tmp_path / "sub" / "my.yaml"), "arc_easy", "/a/b.yml"]]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a run that has learned sums, and two tasks about them."""
    made = Project(tmp_path_factory.mktemp("harness"))
    made.write_data(project.conversations(40))
    words = ("train.steps=20", "optim.lr=1e-2", "batch.sequences=4", "launch.processes=1")
    done = made.run((*LAUNCHER, "train"), *made.words("run", *words, "export.at_end=true"))
    assert done.code == 0, done.output
    data = made.folder / "sums.jsonl"
    data.write_text("".join(json.dumps({"n": n, "two": 2 * n}) + "\n" for n in range(12)))
    for name, task in (("sums", CHOICE), ("free", FREE)):
        (made.folder / f"{name}.yaml").write_text(task.format(data=data))
    return made


def scored(here, *words: str):
    return here.run((*LAUNCHER, "eval"), "run", *words)


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs lm-eval")
def test_tasks_score_base_and_tuned(here):
    done = scored(here, "--lm-eval", "sums.yaml,free.yaml")
    assert done.code == ExitCode.ok, done.output
    assert " ± " in done.output
    made = read_json(here.folder_of("run").eval / "lm_eval.json")
    for side in ("base", "tuned"):
        assert made[side]["sums"]["acc"]["stderr"] is not None
        assert 0 <= made[side]["free_sums"]["exact_match"]["value"] <= 1
    assert made["tuned"]["sums"]["acc"]["value"] == 1


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs lm-eval")
def test_what_cannot_be_run_is_said(here):
    done = scored(here, "--lm-eval", "arc_eazy")
    assert done.code == ExitCode.usage, done.output
    assert "arc_easy" in done.output
    (here.folder / "lost.yaml").write_text(CHOICE.format(data="/no/such.jsonl"))
    done = scored(here, "--lm-eval", "lost.yaml")
    assert done.code == ExitCode.data, done.output
    assert "Traceback" not in done.output


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs lm-eval")
def test_a_task_file_lies_elsewhere_than_the_run(here, tmp_path):
    data = here.folder / "sums.jsonl"
    (tmp_path / "mine.yaml").write_text(CHOICE.format(data=data).replace("sums", "mine", 1))
    command = (*LAUNCHER, "eval", "run", "--root", str(here.folder / "runs"), "--base")
    done = Project(tmp_path, here.model).run(command, "--lm-eval", "mine.yaml")
    assert done.code == ExitCode.ok, done.output
    assert "mine" in read_json(here.folder_of("run").eval / "lm_eval.json")["base"]


@pytest.mark.slow
@pytest.mark.skipif(not INSTALLED, reason="needs lm-eval")
def test_one_model_at_a_time_is_held(here, monkeypatch):
    seen: list[weakref.ref] = []

    def open_speaker(*words, **options):
        assert all(model() is None for model in seen)
        speaker = opened(*words, **options)
        seen.append(weakref.ref(speaker.model))
        return speaker

    opened = harness.open_speaker
    monkeypatch.setattr(harness, "open_speaker", open_speaker)
    monkeypatch.chdir(here.folder)
    monkeypatch.setenv("HF_XET_HIGH_PERFORMANCE", "1")  # lm-eval sets it, and leaves it behind
    harness.evaluate(here.folder_of("run"), ["sums.yaml"], ["base", "tuned"])
    assert len(seen) == 2
