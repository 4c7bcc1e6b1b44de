"""metrics.jsonl, through the trackers of a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from launcher.config.schema import Config
from launcher.core.rundir import RunDir
from launcher.track.tracker import Trackers


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


def test_lines_that_cannot_be_written_are_warned_about_once_and_tried_again(tmp_path: Path) -> None:
    warnings: list[str] = []
    trackers = open_trackers(tmp_path, warn=warnings.append)
    path = tmp_path / "metrics.jsonl"
    path.mkdir()
    trackers.log(1, {"loss": 1.0})
    trackers.log(2, {"loss": 1.0})
    path.rmdir()
    trackers.log(3, {"loss": 1.0})
    (said,) = warnings
    assert "metrics.jsonl failed" in said
    assert "lines are lost until it can be written" in said
    assert [line["step"] for line in lines_of(path)] == [3]
