from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from launcher.config.schema import Config, WandbMode
from launcher.rundir import RunDir, read_json
from launcher.track.tracker import JsonLines, Trackers, tracker_id


class Recorder:
    """A tracker that keeps what it is told, and fails on demand."""

    def __init__(self, fails_at: str = "") -> None:
        self.calls: list[tuple[str, Any]] = []
        self._fails_at = fails_at

    def _note(self, name: str, value: Any = None) -> None:
        self.calls.append((name, value))
        if name == self._fails_at:
            raise ConnectionError("the service is gone")

    def start(self) -> None:
        self._note("start")

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


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def open_trackers(run: Path, **options: Any) -> Trackers:
    return Trackers.open(RunDir(run), Config(), {}, **options)


def test_every_log_is_one_line_on_disk_at_once(tmp_path: Path) -> None:
    trackers = open_trackers(tmp_path)
    trackers.log(10, {"kind": "train", "loss": 1.5, "mfu": None})
    trackers.log(20, {"kind": "eval", "eval/loss": 1.25})
    assert lines_of(tmp_path / "metrics.jsonl") == [
        {"step": 10, "kind": "train", "loss": 1.5, "mfu": None},
        {"step": 20, "kind": "eval", "eval/loss": 1.25},
    ]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_does_not_know_stay_readable(tmp_path: Path, value: float) -> None:
    open_trackers(tmp_path).log(1, {"loss": value, "lr": 0.5})

    def refuse(constant: str) -> Any:
        raise ValueError(constant)

    line = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(line, parse_constant=refuse) == {"step": 1, "loss": str(value), "lr": 0.5}


def test_a_resumed_run_drops_what_it_will_log_again(tmp_path: Path) -> None:
    first = open_trackers(tmp_path)
    for step in (10, 20, 30, 40):
        first.log(step, {"loss": float(step)})
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 50, "lo')  # killed while writing
    second = open_trackers(tmp_path, resumed_step=25)
    second.log(30, {"loss": 0.0})
    assert [(line["step"], line["loss"]) for line in lines_of(tmp_path / "metrics.jsonl")] == [
        (10, 10.0),
        (20, 20.0),
        (30, 0.0),
    ]


def test_a_fresh_start_begins_an_empty_file(tmp_path: Path) -> None:
    open_trackers(tmp_path).log(10, {"loss": 1.0})
    open_trackers(tmp_path).log(5, {"loss": 2.0})
    assert [line["step"] for line in lines_of(tmp_path / "metrics.jsonl")] == [5]


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
    lines = JsonLines(tmp_path / "metrics.jsonl")
    trackers = Trackers({"broken": broken, "sound": sound}, lines=lines, warn=warnings.append)
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
    assert len(lines_of(tmp_path / "metrics.jsonl")) == 2


def test_lines_that_cannot_be_written_are_warned_about_once_and_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.mkdir()
    warnings: list[str] = []
    recorder = Recorder()
    trackers = Trackers({"r": recorder}, lines=JsonLines(path), warn=warnings.append)
    trackers.log(1, {"loss": 1.0})
    trackers.log(2, {"loss": 1.0})
    path.rmdir()
    trackers.log(3, {"loss": 1.0})
    assert len(warnings) == 1
    assert [line["step"] for line in lines_of(path)] == [3]
    assert len(recorder.calls) == 3


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
    lines, wandb = said
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
