"""TensorBoard's event files, read back by TensorBoard's own reader."""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.summary.writer import event_file_writer
from tensorboard.util.tensor_util import make_ndarray

from launcher.config.compose import compose
from launcher.config.schema import Config
from launcher.core.rundir import RunDir
from launcher.track.tracker import Trackers


@pytest.fixture(autouse=True)
def _count_files_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of one process and second are in the order of a counter read as text: 10 before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def open_trackers(run: Path, **options: Any) -> Trackers:
    config = compose.compose(["track=tensorboard", "optim.lr=3e-4", "run.tags=[trial,b]"])
    warnings: list[str] = []
    resolved = compose.to_dict(config)
    trackers = Trackers.open(RunDir(run), config, resolved, warn=warnings.append, **options)
    assert warnings == []
    return trackers


def read(run: Path) -> EventAccumulator:
    """As `tensorboard` reads a folder."""
    return EventAccumulator(str(run / "tensorboard")).Reload()


def points(run: Path, tag: str) -> list[tuple[int, float]]:
    return [(e.step, make_ndarray(e.tensor_proto).item()) for e in read(run).Tensors(tag)]


def test_a_run_holds_metrics_config_summary_and_table(tmp_path: Path) -> None:
    trackers = open_trackers(tmp_path)
    for step in (10, 20):
        values = {"kind": "train", "time": 5.0 * step, "loss": 2.5 / step, "mfu": None}
        trackers.log(step, values | {"epoch": 0.5, "tokens": 100 * step})
    trackers.log(20, {"kind": "eval", "time": 101.0, "eval/loss": 0.75})
    cells = [["2 + 2?", "4"], ["a|b\n<i>", None]]
    trackers.table("samples", ["prompt", "tuned"], cells)
    trackers.summary({"base/loss": 2.0, "tuned/loss": 0.75, "tuned/f1": None})
    trackers.artifact("model", tmp_path)
    trackers.finish(0)

    found = read(tmp_path)
    assert set(found.PluginTagToContent("scalars")) == {
        *("train/loss", "epoch", "tokens", "eval/loss", "base/loss", "tuned/loss")
    }
    assert points(tmp_path, "train/loss") == [(10, 0.25), (20, 0.125)]
    assert [event.wall_time for event in found.Tensors("train/loss")] == [50.0, 100.0]
    assert points(tmp_path, "tokens") == [(10, 1000), (20, 2000)]
    assert points(tmp_path, "eval/loss") == points(tmp_path, "tuned/loss") == [(20, 0.75)]
    (table,) = found.Tensors("samples/text_summary")
    assert table.tensor_proto.string_val[0].decode().splitlines() == [
        *("| prompt | tuned |", "| --- | --- |", "| 2 + 2? | 4 |"),
        "| a&#124;b<br>&lt;i&gt; |  |",
    ]


def plugin_data(run: Path, tag: str) -> bytes:
    content: bytes = read(run).SummaryMetadata(tag).plugin_data.content
    return content


def test_the_config_is_there_as_hyperparameters_and_as_it_was_composed(tmp_path: Path) -> None:
    trackers = open_trackers(tmp_path)
    # While the run goes on, too.
    content = plugin_data(tmp_path, metadata.SESSION_START_INFO_TAG)
    found = metadata.parse_session_start_info_plugin_data(content).hparams
    assert found["optim.lr"].number_value == 3e-4
    assert found["optim.name"].string_value == "adamw"
    assert found["run.tags"].string_value == '["trial", "b"]'
    assert found["track.tensorboard.enabled"].number_value == 1
    (text,) = read(tmp_path).Tensors("config/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    (tmp_path / "config.yaml").write_text("\n".join(lines[1:-1]))
    config = compose.load(tmp_path / "config.yaml")
    assert config.optim.lr == 3e-4
    assert metadata.SESSION_END_INFO_TAG not in read(tmp_path).summary_metadata
    trackers.finish(0)
    done = plugin_data(tmp_path, metadata.SESSION_END_INFO_TAG)
    assert metadata.parse_session_end_info_plugin_data(done).status == 1  # STATUS_SUCCESS


def test_an_event_is_on_disk_when_it_is_logged(tmp_path: Path) -> None:
    trackers = open_trackers(tmp_path)
    trackers.log(1, {"kind": "train", "loss": 1.0})
    assert points(tmp_path, "train/loss") == [(1, 1.0)]
    trackers.finish(0)


def test_a_resumed_run_goes_on_without_a_step_twice(tmp_path: Path) -> None:
    first = open_trackers(tmp_path)
    for step in (10, 20, 30, 40):
        first.log(step, {"kind": "train", "loss": float(step)})
    first.log(40, {"kind": "eval", "eval/loss": 4.0})
    (file,) = (tmp_path / "tensorboard").iterdir()
    with open(file, "ab") as stream:  # killed while writing
        stream.write(b"\x18\0\0\0\0\0\0\0torn")
    second = open_trackers(tmp_path, resumed_step=25)
    for step in (30, 40, 50):
        second.log(step, {"kind": "train", "loss": -float(step)})
    second.log(40, {"kind": "eval", "eval/loss": 3.0})
    second.finish(75, preempted=True)
    third = open_trackers(tmp_path, resumed_step=50)
    third.log(60, {"kind": "train", "loss": 0.0})
    third.finish(0)

    values = [(10, 10.0), (20, 20.0), (30, -30.0), (40, -40.0), (50, -50.0), (60, 0.0)]
    assert points(tmp_path, "train/loss") == values
    assert points(tmp_path, "eval/loss") == [(40, 3.0)]
    found = read(tmp_path)
    assert len(found.Tensors("config/text_summary")) == 1
    assert metadata.SESSION_END_INFO_TAG in found.summary_metadata


def test_a_fresh_start_hides_what_was_there(tmp_path: Path) -> None:
    open_trackers(tmp_path).log(10, {"kind": "train", "loss": 1.0})
    open_trackers(tmp_path).log(5, {"kind": "train", "loss": 2.0})
    assert points(tmp_path, "train/loss") == [(5, 2.0)]
    assert len(read(tmp_path).Tensors("config/text_summary")) == 1


@pytest.mark.parametrize("resumed_step", [None, 30])
def test_the_scores_of_weights_that_are_not_the_last_hide_no_later_ones(
    tmp_path: Path, resumed_step: int | None
) -> None:
    trackers = open_trackers(tmp_path)
    for step in (10, 20, 30):
        trackers.log(step, {"kind": "eval", "eval/loss": float(step)})
    if resumed_step:
        trackers = open_trackers(tmp_path, resumed_step=resumed_step)
    trackers.log(10, {"kind": "eval", "eval/loss": 10.0, "eval/f1": 0.5})
    trackers.finish(0)
    assert points(tmp_path, "eval/loss") == [(10, 10.0), (20, 20.0), (30, 30.0)]
    assert points(tmp_path, "eval/f1") == [(10, 0.5)]


def test_a_loss_that_is_no_number_is_shown_as_such(tmp_path: Path) -> None:
    trackers = open_trackers(tmp_path)
    trackers.log(1, {"kind": "train", "loss": math.nan})
    ((_, value),) = points(tmp_path, "train/loss")
    assert math.isnan(value)
    trackers.finish(0)


def test_without_the_package_there_is_a_warning_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    config, said = Config(), list[str]()
    config.track.tensorboard.enabled = True
    trackers = Trackers.open(RunDir(tmp_path), config, {}, warn=said.append)
    trackers.log(1, {"kind": "train", "loss": 1.0})
    assert os.listdir(tmp_path) == ["metrics.jsonl"]
    (warning,) = said
    assert warning.startswith("tracker tensorboard failed")
