from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.config.schema import Config, WandbMode
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.track import tracker
from launcher.track.tracker import Trackers, tracker_id
from launcher.train import finish


class Recorder:
    """A tracker that keeps what it is told, and fails on demand."""

    stays_on = False

    def __init__(self, fails_at: str = "") -> None:
        self.calls: list[tuple[str, Any]] = []
        self._fails_at = fails_at

    def _note(self, name: str, value: Any = None) -> None:
        self.calls.append((name, value))
        if name == self._fails_at:
            raise ConnectionError("the service is gone")

    def start(self, resumed_step: int | None) -> None:
        self._note("start", resumed_step)

    def log(self, values: Mapping[str, Any]) -> None:
        self._note("log", dict(values))

    def summary(self, values: Mapping[str, Any]) -> None:
        self._note("summary", dict(values))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        self._note("table", (name, columns, rows))

    def artifact(self, name: str, folder: Path) -> None:
        self._note("artifact", (name, folder))

    def finish(self, exit_code: int, *, preempted: bool) -> None:
        self._note("finish", (exit_code, preempted))


def open_trackers(run: Path, **options: Any) -> Trackers:
    return Trackers.open(RunDir(run), Config(), {}, **options)


def test_the_seam_names_no_tracker() -> None:
    source = Path(tracker.__file__).read_text().lower() + Path(finish.__file__).read_text().lower()
    assert [name for name in ("wandb", "weights & biases", "tensorboard") if name in source] == []


def test_a_library_is_imported_where_its_tracker_is_on(tmp_path: Path) -> None:
    code = """
import sys
from launcher.config.schema import Config
from launcher.core.rundir import RunDir
from launcher.track import jsonl, tensorboard, wandb
from launcher.track.tracker import Trackers
Trackers.open(RunDir(sys.argv[1]), Config(), {}).log(1, {"loss": 1.0})
print(sorted({"tensorboard", "torch", "wandb"} & set(sys.modules)))
"""
    words = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    trackers = open_trackers(tmp_path, is_main=False)
    trackers.log(1, {"loss": 1.0})
    trackers.summary({"a": 1})
    trackers.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("fails_at", ["log", "summary", "table", "artifact", "finish"])
def test_a_failing_tracker_is_warned_about_once_and_left_out(tmp_path: Path, fails_at: str) -> None:
    broken, sound = Recorder(fails_at), Recorder()
    warnings: list[str] = []
    trackers = Trackers({"broken": broken, "sound": sound}, warn=warnings.append)
    for step in (1, 2):
        trackers.log(step, {"loss": 1.0})
        trackers.summary({"x": 1})
        trackers.table("samples", ["a"], [["b"]])
        trackers.artifact("model", tmp_path)
    trackers.finish(0)
    assert [call for call, _ in broken.calls].count(fails_at) == 1
    assert len(sound.calls) == 9
    assert len(warnings) == 1
    assert "broken" in warnings[0]
    assert "the service is gone" in warnings[0]


def test_trackers_that_cannot_be_opened_are_warned_about_and_training_goes_on(
    tmp_path: Path,
) -> None:
    run, said = RunDir(tmp_path), list[str]()
    for path in (run.metrics, run.tracking):  # a folder where a file should be
        path.mkdir()
    config = Config()
    config.track.wandb.mode = WandbMode.offline
    trackers = Trackers.open(run, config, {}, warn=said.append)
    trackers.log(1, {"kind": "train", "loss": 1.0})
    trackers.finish()
    wandb, lines = said
    assert "metrics.jsonl failed" in lines
    assert "wandb failed" in wandb
    assert all("training goes on" in line for line in said)


def test_the_end_closes_trackers_once_and_says_how_the_run_ended() -> None:
    recorder = Recorder()
    trackers = Trackers({"r": recorder})
    trackers.finish(75, preempted=True)
    trackers.finish(0)
    assert recorder.calls == [("finish", (75, True))]


def test_the_id_made_with_the_run_folder_is_used_and_an_absent_one_is_made_once(
    tmp_path: Path,
) -> None:
    run = RunDir(tmp_path)
    run.tracking.write_text('{"wandb": "abcd1234", "other": "x"}')
    assert tracker_id(run, "wandb") == "abcd1234"
    run.tracking.unlink()
    made = tracker_id(run, "wandb")
    assert made == tracker_id(run, "wandb") == read_json(run.tracking)["wandb"]
