"""The files of a user's own that a config names, and a run's copies."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from launcher import fingerprint
from launcher.config import create
from launcher.config.check import checks
from launcher.config.compose import compose
from launcher.config.derive import copies, data_entries
from launcher.core.errors import ConfigError
from launcher.core.rundir import RunDir

OWN = "from .helper import WORD\n\n\nclass Format:\n    def read(self, record): ...\n"
MINE = """
data:
  train:
    - {path: x.jsonl, format: one.py}
    - {path: y.jsonl, format: sub/two.py}
    - {path: z.jsonl}
  validation: {path: v.jsonl, format: one.py}
eval:
  general: {path: g.jsonl, format: chat}
  new: {later: [{path: n.jsonl, format: sub/two.py}]}
"""
NAMES = ["format-1.py", "format-2.py", "format-1.py", "format-2.py"]


def write(folder: Path) -> None:
    (folder / "sub").mkdir(parents=True, exist_ok=True)
    for name in ("one.py", "sub/two.py"):
        (folder / name).write_text(OWN)
        (folder / name).with_name("helper.py").write_text(f"WORD = {name!r}\n")
    (folder / "my.yaml").write_text(MINE)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose own files are gone since."""
    own = tmp_path / "own"
    write(own)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checks, "check", lambda *_, **__: [])  # neither model nor data is there
    words = ["own/my.yaml", "model.name=m", "batch.sequences=1", "train.steps=1"]
    made = create.create([*words, "run.name=kept", "run.root=runs"])
    for file in own.rglob("*.py"):
        file.unlink()
    return made


def formats(config) -> list[str]:
    return [slot.get() for slot in copies.slots(config)]


def test_every_entry_of_data_goes_on_with_a_copy(run, tmp_path, monkeypatch):
    config = compose.load(run.config)
    assert formats(config) == [str(run.path / name) for name in NAMES]
    assert "format-1.py" in run.config.read_text()
    assert str(run.path) not in run.config.read_text().replace("root:", "")
    helper = run.path / "format-2_modules" / "helper.py"
    assert helper.read_text() == "WORD = 'sub/two.py'\n"
    items = data_entries.items(config, "train")
    assert [Path(item.format).name for item in items] == ["format-1.py", "format-2.py", "auto"]
    moved = run.path.rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    assert formats(compose.load(moved / "config.yaml")) == [str(moved / name) for name in NAMES]
    # As a file of one's own it is the same run again.
    again = compose.compose([str(moved / "config.yaml")])
    assert formats(again) == [str(moved / name) for name in NAMES]


def test_a_module_that_others_can_have_written_is_not_run(run, monkeypatch):
    helper = run.path / "format-1_modules" / "helper.py"
    for path in (helper, helper.parent):
        mode = path.stat().st_mode
        path.chmod(mode | 0o002)
        with pytest.raises(ConfigError, match="another user can have written"):
            compose.load(run.config)
        path.chmod(mode)
    assert formats(compose.load(run.config))


def test_a_copy_makes_the_same_prepared_data_and_another_module_others(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.jsonl").write_text("{}\n")
    (tmp_path / "model").mkdir()

    def keys(name: str) -> dict[str, str | None]:
        words = [f"data.train=[{{path: x.jsonl, format: {name}}}]", "model.name=model"]
        return fingerprint.data_keys(compose.compose([*words, f"data.cache={tmp_path}/cache"]))

    config = compose.compose(["my.yaml"])
    for name, text in copies.keep(config, tmp_path / "run").items():
        (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "run" / name).write_text(text)
    before = keys("one.py")
    assert keys("run/format-1.py") == before
    assert keys("sub/two.py") != before  # the same file with another helper
    (tmp_path / "helper.py").write_text("WORD = 'changed'\n")
    assert keys("one.py") != before
    assert keys("run/format-1.py") == before


def test_what_cannot_be_kept_is_refused_before_anything_starts(tmp_path, monkeypatch):
    write(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one.py").write_text("import helper\n")
    config = compose.compose(["my.yaml", "model.name=m"])
    found = checks.check(config, world_size=1, has_gpu=False)
    (problem,) = (one for one in found if "which lies beside it" in one.found)
    assert problem.where == "data.train"


WIRE = """# a comment is kept
type: string_check
name: has ${letter}
input: "{{ sample.output_text }}"
reference: "{{ item.letter }}"
operation: ilike
"""
MODELS = (
    "type: multi\ngraders: {r: {type: reward_model, name: r, model: rm}}\ncalculate_output: r\n"
)


def graded(folder: Path, monkeypatch, text: str, name: str = "graded") -> RunDir:
    """A run whose grader's file is gone since."""
    own = folder / "own"
    own.mkdir(exist_ok=True)
    (own / "reward.yaml").write_text(text)
    (own / "my.yaml").write_text("objective: {name: grpo, grader: reward.yaml}\n")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(checks, "check", lambda *_, **__: [])
    words = ["own/my.yaml", "objective=grpo", "model.name=m", "batch.sequences=8", "train.steps=1"]
    made = create.create([*words, f"run.name={name}", "run.root=runs"])
    (own / "reward.yaml").unlink()
    return made


def test_a_run_goes_on_with_a_copy_of_its_grader(tmp_path, monkeypatch):
    run = graded(tmp_path, monkeypatch, WIRE)
    assert (run.path / "grader.yaml").read_text() == WIRE
    assert "grader: grader.yaml" in run.config.read_text()
    moved = run.path.rename(tmp_path / "moved")
    monkeypatch.chdir("/")
    assert compose.load(moved / "config.yaml").objective.grader == str(moved / "grader.yaml")
    assert compose.load(moved / "config.yaml", runs_code=False).objective.name == "grpo"


def test_a_model_that_lies_beside_a_grader_is_named_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "own" / "rm").mkdir(parents=True)
    run = graded(tmp_path, monkeypatch, MODELS)
    kept = yaml.safe_load((run.path / "grader.yaml").read_text())
    assert kept["graders"]["r"]["model"] == str(tmp_path / "own" / "rm")
    assert kept["calculate_output"] == "r"


def test_a_grader_is_told_by_its_content(tmp_path, monkeypatch):
    """So that a base that one run has scored is known to the next."""
    known = [
        fingerprint.objective_identity(compose.load(graded(tmp_path, monkeypatch, *own).config))
        for own in ((WIRE, "one"), (WIRE, "two"), (WIRE.replace("ilike", "eq"), "other"))
    ]
    assert known[0] == known[1] != known[2]


def test_a_grader_that_is_written_in_the_config_needs_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wire = "objective.grader={type: numeric_match, name: n, reference: '{{item.a}}'}"
    config = compose.compose(["objective=grpo", wire, "model.name=m"])
    assert copies.keep(config, tmp_path) == {}
    assert config.objective.grader["name"] == "n"
