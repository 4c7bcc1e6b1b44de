"""The base that a run's recipe pre-trains is found by what the run folder says of it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import bases
from launcher.config.compose import compose
from launcher.config.schema import Config, ModelConfig, TinyModelConfig
from launcher.core import runtime
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir
from support.ranks import environment

MODEL = TinyModelConfig(recipe="quickstart-base")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bases, "_KEYS", {})
    made = RunDir(tmp_path / "r")
    compose.save(Config(model=MODEL), made.config)
    return made


def base(model: ModelConfig = MODEL) -> str:
    folder = bases.trained_base(model)
    assert folder is not None
    return folder.name


def test_what_is_frozen_is_what_the_recipe_composes_to(run: RunDir) -> None:
    composed = base()
    bases.freeze(run, MODEL)
    assert read_json(run.base) == {"key": composed}
    assert base() == composed


def test_a_run_keeps_the_base_that_it_began_with(run: RunDir) -> None:
    composed = base()
    write_json(run.base, {"key": "of-another-release"})
    bases.freeze(run, MODEL)
    assert base() == "of-another-release"
    assert base(TinyModelConfig(recipe="quickstart-base", layers=1)) not in (composed, base())
    bases.renew(run, MODEL)  # it is gone, and is made anew
    assert base() == composed
    assert read_json(run.base) == {"key": composed}


def test_runs_of_one_process_keep_the_base_that_each_began_with(run: RunDir) -> None:
    composed = base()
    old, new = RunDir(run.path.parent / "old"), RunDir(run.path.parent / "new")
    write_json(old.base, {"key": "of-another-release"})
    for one, wanted in ((old, "of-another-release"), (run, composed), (new, composed)) * 2:
        bases.freeze(one, MODEL)
        assert base() == wanted
        assert read_json(one.base) == {"key": wanted}
    assert bases.recall(old, MODEL)
    assert base() == "of-another-release"
    new.base.unlink()  # a run of a version that kept none
    assert not bases.recall(new, MODEL)
    assert base() == composed


def test_nothing_is_frozen_without_a_recipe(run: RunDir) -> None:
    for model in (TinyModelConfig(), ModelConfig(name="folder")):
        bases.freeze(run, model)
        assert not bases.recall(run, model)
    assert not run.base.exists()


def test_a_process_that_finds_the_base_of_a_run_composes_nothing(run: RunDir) -> None:
    code = (
        "import sys\n"
        "from launcher import bases\n"
        "from launcher.config.compose import compose\n"
        "from launcher.core.rundir import RunDir\n"
        "run = RunDir(sys.argv[1])\n"
        "model = compose.load(run.config).model\n"
        "bases.recall(run, model)\n"
        "print(bases.trained_base(model).name, 'hydra' in sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(run)]
    told = []
    for _ in range(2):
        done = subprocess.run(
            command, env=environment(), capture_output=True, text=True, check=True
        )
        told.append(done.stdout.split())
        bases.freeze(run, MODEL)
    assert told == [[base(), "True"], [base(), "False"]]


#: Few steps, so that both are made in seconds.
SMALL = {
    "first": "- override /data: text\n  - override /objective: text",
    "second": "- override /data: chat\n  - override /peft: lora",
}
RECIPE = """\
# @package _global_
# {name}: a recipe of a test.
defaults:
  - override /model: tiny
  {overrides}
  - override /eval: none
model: {{recipe: {recipe}}}
data: {{train: "builtin:{data}", validation_share: 0, max_length: 128}}
batch: {{tokens: 512}}
train: {{steps: 2, epochs: null}}
"""


def write_recipes(conf: Path) -> None:
    for name, data in (("first", "quickstart-text"), ("second", "quickstart-chat")):
        text = RECIPE.format(
            name=name,
            overrides=SMALL[name],
            recipe="first" if name == "second" else "null",
            data=data,
        )
        (conf / "experiment" / f"{name}.yaml").write_text(text)


@pytest.mark.slow
def test_a_recipe_may_begin_with_what_another_has_trained(tmp_path, monkeypatch):
    conf = tmp_path / "conf"
    shutil.copytree(runtime.conf_dir(), conf)
    monkeypatch.setenv("LAUNCHER_CONF", str(conf))
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(bases, "_KEYS", {})
    write_recipes(conf)
    words = ["model=tiny", "model.recipe=second", "data.train=builtin:quickstart-chat", "eval=none"]
    words += ["data.validation_share=0", "data.max_length=128", "batch.sequences=4"]
    command = [sys.executable, "-m", "launcher.cli", "train", *words, "train.steps=1"]
    done = subprocess.run(
        [*command, "run.name=third"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = sorted(path.parent.name for path in (tmp_path / "cache" / "bases").glob("*/config.json"))
    assert len(made) == 2  # the second is whole, its adapters merged
    key = read_json(tmp_path / "runs" / "third" / "base.json")["key"]
    assert key in made


def test_a_base_is_another_where_the_one_before_it_is(monkeypatch):
    config = compose.compose(["experiment=quickstart"])
    words = bases._recipe_words(config.model)
    keys = set()
    for before in ("one", "other"):
        monkeypatch.setattr(bases, "_KEYS", {words: before})
        keys.add(bases.base_key(config))
    assert len(keys) == 2
