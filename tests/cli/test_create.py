"""The folder of a new run."""

from __future__ import annotations

import os
import stat

import pytest
import yaml

from launcher.config import create
from launcher.config.compose import compose
from launcher.config.derive import plan
from launcher.core.errors import ConfigError, StorageError
from launcher.core.files import read_json
from launcher.core.rundir import RunDir, State

WORDS = ("model=tiny", "data.train=builtin:quickstart-text", "batch.sequences=8")


def test_run_folder_holds_all_that_is_promised(tmp_path):
    words = [*WORDS, f"run.root={tmp_path}", "optim.lr=0.5", "launch.processes=2"]
    run = create.create(words)
    assert run.path.parent == tmp_path
    config = compose.load(run.config)
    assert (config.optim.lr, config.run.name) == (0.5, run.name)
    assert stat.S_IMODE(run.config.stat().st_mode) == 0o444
    assert yaml.safe_load(run.overrides.read_text()) == words
    made = plan.Plan.from_json(run.plan.read_text())
    assert (made.world_size, made.global_sequences) == (2, 8)
    status = run.status()
    assert (status.state, status.attempt, status.pid) == (State.preparing, 0, os.getpid())
    wandb_id = read_json(run.tracking)["wandb"]
    assert len(wandb_id) == 8
    assert wandb_id.isalnum()
    assert wandb_id == wandb_id.lower()
    environment = read_json(run.environment)
    assert environment["cwd"] == os.getcwd()
    assert environment["packages"]["torch"]
    assert environment["cpus"] >= 1


def test_overrides_with_hostile_text_are_read_back(tmp_path):
    words = [*WORDS, f"run.root={tmp_path}", "data.system='say: \"hi\" #1\n- ü'"]
    run = create.create(words)
    assert yaml.safe_load(run.overrides.read_text()) == words


def test_generated_names_come_from_the_recipe_and_differ(tmp_path):
    names = {create.create([*WORDS, f"run.root={tmp_path}"]).name for _ in range(3)}
    assert len(names) == 3
    assert all(name.startswith("tiny-2") for name in names)
    folder = tmp_path / "conf"
    (folder / "experiment").mkdir(parents=True)
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\nseed: 7\n")
    words = [*WORDS, f"run.root={tmp_path}", "experiment=mine"]
    run = create.create(words, config_dirs=[folder])
    assert run.name.startswith("mine-2")
    assert compose.load(run.config).seed == 7


def test_taken_name_is_refused_and_nothing_is_touched(tmp_path):
    words = [*WORDS, f"run.root={tmp_path}", "run.name=mine"]
    run = create.create(words)
    before = {path: path.stat().st_mtime_ns for path in run.path.iterdir()}
    with pytest.raises(ConfigError, match="launcher resume mine"):
        create.create(words)
    assert {path: path.stat().st_mtime_ns for path in run.path.iterdir()} == before


@pytest.mark.parametrize(
    ("file", "what", "hint"),
    [
        ("config.yaml", "run", "`launcher resume n --root {root}` goes on"),
        ("sweep.json", "sweep", "`launcher sweep resume n --root {root}` goes on"),
        ("notes.txt", "folder that is no run", "or remove it: rm -r {root}/n"),
    ],
)
def test_what_has_the_name_is_said(tmp_path, file, what, hint):
    (tmp_path / "n").mkdir()
    (tmp_path / "n" / file).touch()
    with pytest.raises(ConfigError, match=f"there is a {what} of this name already") as caught:
        create.create([*WORDS, f"run.root={tmp_path}", "run.name=n"])
    assert hint.format(root=tmp_path) in caught.value.problems[0].hint


@pytest.mark.parametrize("name", ["a/b", "../up", "", ".hidden", "a b", "-x"])
def test_name_that_is_no_folder_name_is_refused(tmp_path, name):
    with pytest.raises(ConfigError, match="run.name"):
        create.create([*WORDS, f"run.root={tmp_path}", f"run.name='{name}'"])
    assert list(tmp_path.iterdir()) == []


def test_world_size_of_started_ranks_counts(tmp_path):
    words = [*WORDS, f"run.root={tmp_path}", "launch.processes=2"]
    run = create.create(words, world_size=4)
    assert read_json(run.plan)["world_size"] == 4
    with pytest.raises(ConfigError, match="batch"):
        create.create([*words], world_size=3)


def test_unwritable_root_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError) as caught:
        create.create([*WORDS, f"run.root={tmp_path}/file"])
    assert "run.root" in str(caught.value)
    with pytest.raises(StorageError):
        create.create([*WORDS, "run.root=/sys/kernel/runs"])


def test_failure_half_way_leaves_nothing(tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise StorageError("No space left on device")

    monkeypatch.setattr(compose, "save", full)
    with pytest.raises(StorageError):
        create.create([*WORDS, f"run.root={tmp_path}", "run.name=r"])
    assert not RunDir(tmp_path / "r").path.exists()
