"""Going on beyond the end of a run: what a resume may change, and what is refused."""

from __future__ import annotations

import shutil
import stat

import pytest
import yaml

from launcher.config import create
from launcher.config.compose import compose
from launcher.config.schema import Weights
from launcher.core.errors import ConfigError
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir, State
from launcher.runs import extension, start

WORDS = (
    *("model=tiny", "data.train=builtin:quickstart-text", "batch.sequences=8", "train.steps=100"),
    *("schedule=constant", "eval.times=10", "train.early_stop.patience=3", "run.name=r"),
)
HELD = "a run goes on with the config that it began with"


@pytest.fixture
def run(tmp_path) -> RunDir:
    """A run that has done its 100 steps."""
    made = create.create([*WORDS, f"run.root={tmp_path}"])
    made.set_status(State.succeeded, exit_code=0, step=100, steps=100, attempt=1)
    write_json(made.plan, {**read_json(made.plan), "epochs": 4.0})
    write_checkpoint(made, 100)
    return made


def write_checkpoint(run: RunDir, step: int, since: int = 0) -> None:
    folder = run.checkpoints / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "weights").write_bytes(b"1234")
    files = {"weights": {"bytes": 4, "blake2b": ""}}
    state = {"selection": {"since": since}}
    write_json(folder / "manifest.json", {"step": step, "files": files, "state": state})


def stop_early(run: RunDir) -> None:
    """Make it a run that was ended early at step 60."""
    shutil.rmtree(run.checkpoints)
    write_checkpoint(run, 60, since=3)
    write_json(run.best, {"weights": "best", "step": 30, "stopped": 60, "result": 30})
    reason = "stopped early at step 60: eval.loss has not improved for 3 evaluations"
    run.set_status(State.succeeded, step=60, reason=reason)


def test_more_steps_are_written_to_the_run_as_it_begins(run):
    change = extension.changed(run, ["train.steps=200"])
    assert compose.load(run.config).train.steps == 100
    assert start.begin(run, change) == 1
    config = compose.load(run.config)
    assert (config.train.steps, config.train.epochs) == (200, None)
    assert config.optim.lr == compose.compose([*WORDS]).optim.lr
    assert stat.S_IMODE(run.config.stat().st_mode) == 0o444
    words = yaml.safe_load(run.overrides.read_text())
    assert words == [*WORDS, f"run.root={run.path.parent}", "train.steps=200"]
    made = read_json(run.plan)
    assert (made["steps"], made["eval_steps"], made["world_size"]) == (200, 20, 1)
    assert run.status().state is State.preparing


def test_epochs_take_the_place_of_steps_and_ranks_may_change(run):
    start.begin(run, extension.changed(run, ["train.epochs=8"], world_size=2))
    config = compose.load(run.config)
    assert (config.train.steps, config.train.epochs) == (None, 8.0)
    assert read_json(run.plan)["world_size"] == 2


@pytest.mark.parametrize(
    ("word", "where", "found", "hint"),
    [
        ("train.steps=100", "train.steps", "it has done 100 steps", "train.steps=200"),
        ("train.steps=50", "train.steps", "50 ends where the run has been", "train.steps=200"),
        ("train.epochs=4", "train.epochs", "4.0 ends where the run has been", "train.steps=200"),
        ("train.steps=0", "train.steps", "out of range", "at least 1"),
        ("train.stepz=200", "train.stepz", "unknown key", "train.steps"),
        ("train.steps=many", "train.steps", "many", "digits only"),
        ("optim.lr=1", "optim.lr", HELD, "train.steps, train.epochs"),
        ("run.name=x", "run.name", HELD, "run.name=x` begins another run"),
        ("engine=zero3", "engine", HELD, "train.steps, train.epochs"),
        ("train.early_stop.patience=null", "train.steps", "it has done 100", "train.steps=200"),
    ],
)
def test_what_is_refused_leaves_the_run_as_it_was(run, word, where, found, hint):
    before = {path: path.read_bytes() for path in run.path.iterdir() if path.is_file()}
    with pytest.raises(ConfigError) as caught:
        extension.changed(run, [word])
    (problem,) = caught.value.problems
    assert problem.where == where
    assert found in problem.found
    assert hint in problem.hint
    assert {path: path.read_bytes() for path in before} == before


def test_both_steps_and_epochs_are_refused(run):
    with pytest.raises(ConfigError, match="steps=200 and epochs=9"):
        extension.changed(run, ["train.steps=200", "train.epochs=9"])


@pytest.mark.parametrize("damage", ["gone", "short", "torn"])
def test_a_run_without_checkpoints_is_refused(run, damage):
    folder = run.checkpoints / "step-00000100"
    if damage == "gone":
        shutil.rmtree(run.checkpoints)
    elif damage == "short":
        (folder / "weights").write_bytes(b"1")
    else:
        (folder / "manifest.json").write_text("{")
    run.export.mkdir()
    (run.export / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no whole checkpoint is left") as caught:
        extension.changed(run, ["train.steps=200"])
    assert f"model.name={run.export}" in caught.value.problems[0].hint
    with pytest.raises(ConfigError) as caught:
        start.resumable(run)
    assert "launcher train" in caught.value.problems[0].hint


def test_an_older_whole_checkpoint_is_enough(run):
    write_checkpoint(run, 80)
    (run.checkpoints / "step-00000100" / "weights").unlink()
    assert extension.newest(run)["step"] == 80
    extension.changed(run, ["train.steps=200"])


def test_a_finished_run_says_how_to_go_on(run):
    with pytest.raises(ConfigError, match="the run has finished") as caught:
        start.resumable(run)
    assert run.command("resume", more=["train.steps=200"]) in caught.value.problems[0].hint
    extension.changed(run, ["train.steps=200"])  # as the hint says


def test_a_run_that_was_stopped_early_says_so_and_goes_on_without_that_patience(run):
    stop_early(run)
    with pytest.raises(ConfigError, match="stopped early at step 60: eval.loss") as caught:
        start.resumable(run)
    typed = run.command("resume", more=["train.early_stop.patience=null"])
    hint = f"{typed} goes on to step 100"
    assert hint in caught.value.problems[0].hint
    start.begin(run, extension.changed(run, ["train.early_stop.patience=null"]))  # as the hint says
    config = compose.load(run.config)
    assert (config.train.steps, config.train.early_stop.patience) == (100, None)


@pytest.mark.parametrize("words", [["train.steps=200"], ["train.early_stop.patience=2"]])
def test_patience_that_is_used_up_is_refused(run, words):
    stop_early(run)
    with pytest.raises(ConfigError, match="no progress in the last 3 evaluations") as caught:
        extension.changed(run, words)
    assert caught.value.problems[0].where == "train.early_stop.patience"
    extension.changed(run, ["train.steps=200", "train.early_stop.patience=4"])


def test_without_its_patience_a_run_still_gives_its_best_weights(run):
    assert compose.load(run.config).export.weights is None
    start.begin(run, extension.changed(run, ["train.steps=200", "train.early_stop.patience=null"]))
    config = compose.load(run.config)
    assert (config.train.early_stop.patience, config.export.weights) == (None, Weights.best)
