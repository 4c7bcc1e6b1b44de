from __future__ import annotations

import importlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.config.compose.compose import to_dict
from launcher.config.schema import Config, JudgeConfig, WandbConfig, WandbMode
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.track.tracker import Trackers
from launcher.track.wandb import WandbTracker

BLOCK = 32768
WHERE = "http://judge.example/v1"


def records(path: Path) -> Iterator[Any]:
    """The records of an offline run: LevelDB's log format (blocks of 32 KiB, pieces with a 7-byte
    header of checksum, length and kind) after a 7-byte file header."""
    from wandb.proto import wandb_internal_pb2

    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, parts = 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


def key_of(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


class Offline:
    """What one offline run folder holds."""

    def __init__(self, folder: Path) -> None:
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.step_metrics: set[str] = set()
        self.exit_code: int | None = None
        self.preempting = False
        self.artifacts: list[str] = []
        self.system: set[str] = set()
        self.run: Any = None
        for record in records(next(folder.glob("run-*.wandb"))):
            self._take(record)

    def _take(self, record: Any) -> None:
        kind = record.WhichOneof("record_type")
        if kind == "run":
            self.run = record.run
            self.config |= {i.key: json.loads(i.value_json) for i in record.run.config.update}
        elif kind == "history":
            self.history.append({key_of(i): json.loads(i.value_json) for i in record.history.item})
        elif kind == "summary":
            self.summary |= {key_of(i): json.loads(i.value_json) for i in record.summary.update}
        elif kind == "metric":
            self.step_metrics.add(record.metric.step_metric)
        elif kind == "exit":
            self.exit_code = record.exit.exit_code
        elif kind == "preempting":
            self.preempting = True
        elif kind == "artifact":
            self.artifacts.append(record.artifact.name)
        elif kind == "stats":
            self.system |= {item.key for item in record.stats.item}


def make(run: Path, **options: Any) -> Config:
    config = Config()
    config.run.tags = ["trial"]
    config.track.wandb = WandbConfig(mode=WandbMode.offline, project="proj", group="g", **options)
    return config


def open_trackers(run: Path, config: Config, **options: Any) -> Trackers:
    warnings: list[str] = []
    trackers = Trackers.open(RunDir(run), config, to_dict(config), warn=warnings.append, **options)
    assert warnings == []
    return trackers


def offline_runs(run: Path) -> list[Offline]:
    return [Offline(folder) for folder in sorted((run / "wandb").glob("offline-run-*"))]


@pytest.mark.slow
def test_an_offline_run_holds_config_history_summary_table_and_artifact(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_SILENT")  # the tracker is to be silent by itself
    monkeypatch.delenv("WANDB_DISABLE_WEAVE", raising=False)
    importlib.import_module("openai")  # wandb gives advice where it finds it
    run = tmp_path / "nice-name"
    (run / "export").mkdir(parents=True)
    (run / "export" / "config.json").write_text("{}")
    config = make(run, log_export=True)
    config.eval.judge = JudgeConfig(url=WHERE, key_variable="A_KEY", model="known")
    config.eval.endpoints = {"ours": {"url": WHERE, "key_variable": "A_KEY", "retries": 1}}
    trackers = open_trackers(run, config)
    for step in (10, 20):
        values = {"kind": "train", "time": 1.0, "loss": 1.0 / step, "mfu": None, "epoch": 0.5}
        trackers.log(step, values)
    trackers.log(20, {"kind": "eval", "time": 1.0, "eval/loss": 0.75})
    trackers.table("samples", ["prompt", "tuned"], [["2 + 2?", "4"], ["ü", "東"]])
    trackers.summary({"base/loss": 2.0, "tuned/loss": 0.75})
    trackers.artifact("model", run / "export")
    trackers.finish(0)

    (found,) = offline_runs(run)
    assert found.run.run_id == read_json(run / "tracking.json")["wandb"]
    assert (found.run.display_name, found.run.project) == ("nice-name", "proj")
    assert (found.run.run_group, list(found.run.tags)) == ("g", ["trial"])
    told = json.dumps(found.config)
    assert WHERE not in told
    assert "A_KEY" not in told
    assert found.config["eval"]["endpoints"] == {"ours": {"retries": 1}}
    assert found.config["eval"]["judge"]["model"] == "known"
    for section, values in to_dict(config).items():
        assert section == "eval" or found.config[section] == json.loads(json.dumps(values))
    train = [(h["step"], h["train/loss"]) for h in found.history if "train/loss" in h]
    assert train == [(10, 0.1), (20, 0.05)]
    assert [(h["step"], h["eval/loss"]) for h in found.history if "eval/loss" in h] == [(20, 0.75)]
    assert not any("train/mfu" in h or "train/time" in h for h in found.history)
    assert found.step_metrics == {"step"}
    assert found.summary["tuned/loss"] == 0.75
    assert found.exit_code == 0
    table = next((run / "wandb").glob("offline-run-*/files/media/table/*.json"))
    assert json.loads(table.read_text()) == {
        "columns": ["prompt", "tuned"],
        "data": [["2 + 2?", "4"], ["ü", "東"]],
    }
    assert any(name.startswith("model-") for name in found.artifacts)
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run_and_a_preempted_one_says_so(tmp_path: Path) -> None:
    config = make(tmp_path)
    first = open_trackers(tmp_path, config)
    for step in (10, 20, 30):
        first.log(step, {"kind": "train", "loss": 1.0})
    first.finish(75, preempted=True)
    second = open_trackers(tmp_path, config, resumed_step=20)
    second.log(30, {"kind": "train", "loss": 0.5})
    second.artifact("model", tmp_path)  # log_export is off
    second.finish(0)

    runs = offline_runs(tmp_path)
    assert len({found.run.run_id for found in runs}) == 1
    assert [found.exit_code for found in runs] == [75, 0]
    assert [found.preempting for found in runs] == [True, False]
    # A line after the checkpoint is logged again and is not dropped for its step.
    assert [h["step"] for h in runs[1].history if "train/loss" in h] == [30]
    assert runs[1].artifacts == []


@pytest.mark.slow
def test_a_service_that_does_not_answer_costs_seconds_and_no_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    config = make(tmp_path)
    config.track.wandb.mode = WandbMode.auto
    run = RunDir(tmp_path)
    tracker = WandbTracker(run, config, {}, init_timeout_s=2.0)
    assert tracker.mode == "online"
    trackers = Trackers({"wandb": tracker})
    tracker.start(None)
    trackers.log(10, {"kind": "train", "loss": 1.0})
    trackers.finish(0)
    (found,) = offline_runs(tmp_path)
    assert [h["train/loss"] for h in found.history if "train/loss" in h] == [1.0]


@pytest.mark.parametrize(
    ("mode", "key", "expected"),
    [
        (WandbMode.auto, "a" * 40, "online"),
        (WandbMode.auto, "", "offline"),
        (WandbMode.online, "", "online"),
        (WandbMode.offline, "a" * 40, "offline"),
    ],
)
def test_auto_is_online_only_with_credentials(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: WandbMode,
    key: str,
    expected: str,
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    config = make(tmp_path)
    config.track.wandb.mode = mode
    assert WandbTracker(RunDir(tmp_path), config, {}).mode == expected
