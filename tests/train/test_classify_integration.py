"""`objective=classify` with the real commands: train, compare, export, reload, resume, classify."""

from __future__ import annotations

import io
import json
import random
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from launcher.ab import preparation
from launcher.core.errors import ConfigError, DataError, ExitCode
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir
from launcher.inference import generate
from launcher.objectives.classify import threshold
from launcher.scoring.compare import against, sides
from support import hints, project
from support.models import make_encoder
from support.project import LAUNCHER, Project
from support.results import results_of

pytestmark = pytest.mark.slow

SAID = {
    "fruit": ("apples", "pears", "plums", "grapes"),
    "metal": ("iron", "zinc", "copper", "gold"),
    "oos": ("thunder", "rain", "clouds", "fog"),
}
WORDS = (
    *("data=classification", "objective=classify", "eval=classify", "data.train=train.jsonl"),
    *("data.validation=held_out.jsonl", "data.max_length=32", "export.at_end=true"),
    *("schedule=constant", "optim.lr=3e-3", "launch.processes=1"),
)
OOS = (
    *("objective.out_of_scope=oos", "objective.class_weights=balanced", "batch.sequences=4"),
    "eval.metrics=[loss,accuracy,in_scope_accuracy,oos_recall,f1_macro,ece,auroc]",
    *("train.steps=40", "eval.every_steps=20", "eval.general=general.jsonl"),
)
ENCODER = ("model.name=bert", "data.packing=false", "batch.sequences=16", "train.steps=30")

#: Adapters on a random base take larger steps to show anything.
FASTER = ("optim.lr=6e-3", "train.steps=60")


def texts(count: int, seed: int) -> list[dict[str, str]]:
    rng = random.Random(seed)
    labels = [rng.choice(tuple(SAID)) for _ in range(count)]
    return [
        {"text": f"I saw {rng.randint(2, 99)} {rng.choice(SAID[label])} today", "label": label}
        for label in labels
    ]


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    made = Project(tmp_path_factory.mktemp("classify"))
    for name, records in {
        "train": texts(240, 0),
        "held_out": texts(90, 1),
        # Most of them are no longer in scope: on its own, this set would have everything rejected.
        "general": [{**r, "label": "oos"} for r in texts(60, 5) if r["label"] != "oos"]
        + [r for r in texts(20, 6) if r["label"] != "oos"],
        "tagged": [{"text": r["text"], "label": [r["label"]]} for r in texts(120, 2)],
    }.items():
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (made.folder / f"{name}.jsonl").write_text(lines)
    make_encoder(made.folder / "bert", [record["text"] for record in texts(300, 3)])
    return made


def train(here: Project, name: str, *words: str):
    done = here.run((*LAUNCHER, "train"), *here.words(name), *WORDS, *words)
    assert done.code == 0, done.output
    run = here.folder_of(name)
    assert "report could not be written" not in done.output
    return run, read_json(run.eval / "tuned.json"), done.output


@pytest.fixture(scope="module")
def full(here):
    return train(here, "full", *OOS)


def predictions(model, tokenizer, records):
    """What a user of the folder gets: label numbers and largest probabilities."""
    batch = tokenizer([r["text"] for r in records], return_tensors="pt", padding=True)
    batch.pop("token_type_ids", None)
    with torch.no_grad():
        chances = model.eval()(**batch).logits.softmax(-1)
    return chances.argmax(-1).tolist(), chances.max(-1).values.tolist()


def test_a_run_ends_with_a_comparison_that_says_what_a_classifier_does(full):
    run, tuned, output = full
    made = read_json(run.eval / "comparison.json")
    assert made["metrics"]["accuracy"]["verdict"] == "better"
    assert tuned["metrics"]["in_scope_accuracy"] > 0.8
    assert tuned["metrics"]["auroc"] > 0.6
    assert 0 <= tuned["threshold"] <= 1
    labels = {part["value"]: part["records"] for part in made["slices"] if part["by"] == "label"}
    assert labels.keys() == SAID.keys()
    assert sum(labels.values()) == 90
    rows = {row["name"]: row for row in made["class_report"]["classes"]}
    assert {name: row["support"] for name, row in rows.items()} == labels
    assert sum(count for *_, count in made["class_report"]["confusion"]) == 90
    usual = made["guessing"]
    assert usual["label"] in ("fruit", "metal")
    assert f"always {usual['label']!r}" in output
    assert read_json(run.objective)["state"]["names"] == ["fruit", "metal"]
    lines = [json.loads(line) for line in (run.eval / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 90
    assert {line["reference"] for line in lines} == labels.keys()
    assert all(line["where"].startswith("held_out.jsonl:") for line in lines)
    assert sum(line["change"] == "better" for line in lines) >= 10


def test_a_further_set_is_judged_by_the_held_out_threshold(full):
    for side in ("base", "tuned"):
        stored = read_json(full[0].eval / f"{side}.json")
        found = stored["further"]["general"]["passes"]["classes"]
        by_threshold = [p < stored["threshold"] for p in found["probability"]]
        assert found["rejected"] == by_threshold
        assert "classes" not in stored["further"]["train"]["passes"]
    assert not all(found["rejected"])


def test_the_export_gives_the_runs_predictions_to_transformers(here, full):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run, tuned, _ = full
    model = AutoModelForSequenceClassification.from_pretrained(run.export)
    assert model.config.id2label == {0: "fruit", 1: "metal"}
    assert model.config.out_of_scope_threshold == tuned["threshold"]
    records = [json.loads(line) for line in (here.folder / "held_out.jsonl").open()]
    found, chances = predictions(model, AutoTokenizer.from_pretrained(run.export), records)
    stored = tuned["passes"]["classes"]
    assert [[i] for i in found] == stored["predicted"]
    assert chances == pytest.approx(stored["probability"], abs=1e-4)


def require_readme_names_as_generate(here: Project, run: RunDir, folder: Path) -> list[str]:
    """Fail unless the code in an export's README names texts as the launcher does; the names."""
    texts = [json.loads(line)["text"] for line in (here.folder / "held_out.jsonl").open()]
    readme = (folder / "README.md").read_text("utf-8")
    code = readme.split("```python\n")[1].split("```")[0]
    code = code.replace('texts = ["I was charged twice"]', f"texts = {texts!r}")
    assert repr(texts[-1]) in code
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    asked = [word for text in texts for word in ("-p", text)]
    named = here.run((*LAUNCHER, "generate", run.name, *asked)).output.splitlines()
    expected = [line.split("\t")[0] for line in named if "\t" in line]
    assert [line.split("\t")[0] for line in done.stdout.splitlines()] == expected
    assert len(expected) == len(texts)
    return expected


def test_the_code_in_the_exports_readme_names_texts_as_generate_does(here, full):
    run = full[0]
    assert "oos" in require_readme_names_as_generate(here, run, run.export)


def test_eval_compare_and_generate_know_the_classes(here, full):
    run, tuned, _ = full
    refused = here.run((*LAUNCHER, "eval", "full", "--lm-eval", "hellaswag"))
    assert refused.code == ExitCode.usage, refused.output
    (words,) = hints.commands(refused.output)
    done = here.run(LAUNCHER, *words, "--json")
    scores = json.loads(done.output[done.output.index("{") :])
    assert scores == pytest.approx(tuned["metrics"], abs=1e-5)
    with pytest.raises(ConfigError) as caught:
        preparation._require_model(str(run))
    (words,) = hints.commands(caught.value.problems[0].hint)
    done = here.run(LAUNCHER, *words, "full:base", "full", "--json")
    (made,) = json.loads(done.output[done.output.index("[") :])
    written = read_json(run.eval / "comparison.json")["metrics"]["accuracy"]
    assert made["metrics"]["accuracy"] == written
    refused = here.run((*LAUNCHER, "chat", "full"))
    assert refused.code == ExitCode.usage, refused.output
    (words,) = hints.commands(refused.output)
    asked = ("-p", "I saw 7 pears today", "-p", "I saw 9 zinc today")
    done = here.run(LAUNCHER, *words, *asked)
    named = [line.split("\t") for line in done.output.splitlines() if "\t" in line]
    assert [name for name, _ in named] == ["fruit", "metal"]
    assert all(0.5 <= float(probability) <= 1 for _, probability in named)


def test_what_generate_refuses_of_a_classifier(full, monkeypatch, capsys):
    run = str(full[0])
    for words, code, said in (
        (("-p", "I saw 7 pears today", "-p", ""), ExitCode.data, "text 2 is empty"),
        (("-p", "x", "--raw", "--max-new-tokens", "9"), ExitCode.usage, "--raw, --max-new-tokens"),
        (("-p", "x", "--system", "be kind"), ExitCode.usage, "--system"),
    ):
        assert generate.main([run, *words]) == code
        told = capsys.readouterr().err
        assert said in told
        assert "HINT" in told
    monkeypatch.setattr("sys.stdin", io.StringIO("I saw 7\u2028pears today\nI saw 9 zinc today\n"))
    assert generate.main([run]) == ExitCode.ok
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_each_model_has_its_threshold(full, capsys):
    run, tuned, _ = full
    base = read_json(run.eval / "base.json")
    assert base["threshold"] != tuned["threshold"]
    assert threshold.of_run(run, base=True) == base["threshold"]
    assert threshold.of_run(run) == tuned["threshold"]
    words = [str(run), "-p", "I saw 7 pears today"]
    assert generate.main(words) == ExitCode.ok
    assert "that of the run's end" not in capsys.readouterr().err
    assert generate.main([*words, "--checkpoint", "40"]) == ExitCode.ok
    assert "the threshold for oos is that of the run's end" in capsys.readouterr().err


def test_stored_results_give_the_comparison_of_the_end(here, full, monkeypatch):
    monkeypatch.chdir(here.folder)
    made = against(*sides([f"{full[0]}:base", str(full[0])]))
    written = read_json(full[0].eval / "comparison.json")
    for key in ("metrics", "slices", "further", "gap", "class_report"):
        assert made[key] == written[key]


def test_classifiers_of_other_classes_are_not_compared(here, full, tmp_path, monkeypatch):
    monkeypatch.chdir(here.folder)
    first, second = sides([f"{full[0]}:base", str(full[0])])
    other = tmp_path / "other"
    other.mkdir()
    content = read_json(full[0].objective)
    content["state"]["names"] = ["fruit", "metal", "wood"]
    write_json(RunDir(other).objective, content)
    with pytest.raises(DataError, match="other classes, by their names") as caught:
        against(first, replace(second, run=RunDir(other)))
    assert "data.labels" in str(caught.value)
    # Of a run without metrics of classes there are losses alone.
    for side in (first, second):
        side.config.eval.metrics = ["loss"]
    made = against(replace(first, results=results_of(first.results.losses)), second)
    assert made["metrics"].keys() == {"loss"}
    assert (made["answers"], "class_report" in made) == ([], False)


def test_a_threshold_is_chosen_whatever_the_metrics_are(here):
    words = ("objective.out_of_scope=oos", "eval.metrics=[loss]", "train.steps=2", "peft=none")
    run, tuned, _ = train(here, "loss-only", *words, "batch.sequences=4")
    assert len(tuned["passes"]["classes"]["id"]) == 90
    assert tuned["threshold"] > 0
    assert read_json(run.export / "config.json")["out_of_scope_threshold"] == tuned["threshold"]


def test_a_stopped_run_goes_on_to_the_same_classifier(here, full):
    run = here.folder_of("stopped")
    words = here.words("stopped", *WORDS, *OOS, "checkpoint.every_steps=2")
    started = here.start((*LAUNCHER, "train"), *words)
    started.wait_until(lambda: project.checkpoint_files(run), "the first checkpoint")
    started.process.send_signal(signal.SIGINT)
    assert started.end().code == ExitCode.preempted, started.output
    done = here.run((*LAUNCHER, "resume", "stopped"))
    assert done.code == 0, done.output
    assert project.losses(run) == pytest.approx(project.losses(full[0]), rel=1e-6)
    scores = read_json(run.eval / "tuned.json")["metrics"]
    assert scores == pytest.approx(full[1]["metrics"], abs=1e-5)


@pytest.mark.parametrize("peft", ["none", "lora"])
def test_an_encoder_as_its_makers_store_it(here, peft):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from peft import PeftModel

    name = f"encoder-{peft}"
    run, tuned, _ = train(here, name, *ENCODER, f"peft={peft}")
    assert read_json(run.objective)["head"]["fresh"] == ["bert.pooler.dense", "classifier"]
    base = read_json(run.eval / "base.json")["passes"]["classes"]["probability"]
    assert tuned["passes"]["classes"]["probability"] != base
    if peft == "none":  # adapters on random weights would take longer
        assert tuned["metrics"]["accuracy"] > 0.6
    folder = run.export
    if peft == "lora":
        further = ("plan", f"model.name={run.export}", "data.train=train.jsonl")
        refused = here.run(LAUNCHER, *further)
        (words,) = hints.commands(refused.output)
        done = here.run(LAUNCHER, *(name if w == "RUN" else w for w in words), "-o", "merged")
        assert done.code == 0, done.output
        folder = here.folder / "merged"
        require_readme_names_as_generate(here, run, run.export)
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert model.config.architectures == ["BertForSequenceClassification"]
    records = [json.loads(line) for line in (here.folder / "held_out.jsonl").open()]
    found, _ = predictions(model, AutoTokenizer.from_pretrained(folder), records)
    assert [[i] for i in found] == tuned["passes"]["classes"]["predicted"]
    if peft == "lora":
        done = here.run((*LAUNCHER, "compare", name, "merged", "--require", "not-worse"))
        assert done.code == 0, done.output
        names = read_json(run.export / "classes.json")["names"]
        base = AutoModelForSequenceClassification.from_pretrained(
            here.folder / "bert", num_labels=len(names), id2label=dict(enumerate(names))
        )
        adapted = PeftModel.from_pretrained(base, str(run.export))
        found, _ = predictions(adapted, AutoTokenizer.from_pretrained(run.export), records)
        assert [[i] for i in found] == tuned["passes"]["classes"]["predicted"]
        swapped = here.folder / "swapped"
        shutil.copytree(run.export, swapped)
        (swapped / "classes.json").write_text(json.dumps({"names": names[::-1]}))
        done = here.run((*LAUNCHER, "compare", name, "swapped"))
        assert done.code == ExitCode.data, done.output
        assert "in the same order" in done.output


def test_several_labels_with_adapters_at_stage_3(here):
    words = ("objective.multi_label=true", "eval.metrics=[loss,accuracy,f1_macro,f1_micro]")
    data = ("data.train=tagged.jsonl", "data.validation=tagged.jsonl", "train.steps=30")
    run, tuned, _ = train(
        here, "tagged", *words, *data, "batch.sequences=4", "peft=lora", "engine=zero3", *FASTER
    )
    assert read_json(run.eval / "comparison.json")["metrics"]["loss"]["verdict"] == "better"
    scores = {"loss", "accuracy", "f1_macro", "f1_micro", "train/loss"}
    assert tuned["metrics"].keys() == scores
    assert read_json(run.export / "adapter_config.json")["task_type"] == "SEQ_CLS"
    for named in require_readme_names_as_generate(here, run, run.export):
        assert {*named.split(", ")} <= {*SAID, "(none)"}


def test_a_label_that_no_training_record_has_is_found_before_training(here):
    (here.folder / "other.jsonl").write_text('{"text": "hello", "label": "greeting"}\n')
    done = here.run(
        (*LAUNCHER, "train"), *here.words("bad"), *WORDS, *OOS, "data.validation=other.jsonl"
    )
    assert done.code == ExitCode.data
    assert "other.jsonl:1" in done.output
    assert "HINT" in done.output
