"""`launcher train` with real ranks: stopped by Ctrl-C, resumed, looked at."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import pytest

from launcher.core.errors import ExitCode
from support.ranks import environment

pytestmark = pytest.mark.slow
WORDS = (
    "model=tiny",
    "data=text",
    "objective=text",
    "data.train=texts.jsonl",
    "data.max_length=64",
    "batch.sequences=4",
    "train.steps=100",
    "train.log_every_steps=1",
    "eval=none",
    "export.at_end=false",
    "launch.processes=2",
    "train.threads=1",
    "run.name=r",
)


def test_stop_resume_and_the_verbs_around_them(tmp_path):
    lines = [json.dumps({"text": f"Text {n} counts {n * 7}. " * 6}) for n in range(400)]
    (tmp_path / "texts.jsonl").write_text("\n".join(lines))
    command = [sys.executable, "-m", "launcher.cli"]
    environ = environment()

    def launcher(*words: str) -> subprocess.CompletedProcess[str]:
        options = {"capture_output": True, "text": True, "timeout": 240, "env": environ}
        return subprocess.run([*command, *words], cwd=tmp_path, **options)

    train = subprocess.Popen(
        [*command, "train", *WORDS],
        cwd=tmp_path,
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    metrics = tmp_path / "runs" / "r" / "metrics.jsonl"
    end = time.monotonic() + 200
    while not metrics.exists() and train.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    train.send_signal(signal.SIGINT)
    _, shown = train.communicate(timeout=100)
    assert train.returncode == ExitCode.preempted, shown
    assert "SIGTERM" not in shown
    assert shown.count("HINT: ") == 1
    assert shown.count("stopped by Ctrl-C at step") == shown.count("batch    ") == 1
    assert "HINT: `launcher resume r` goes on from step " in shown

    status = json.loads(launcher("status", "r", "--json").stdout)
    assert status["state"] == "preempted"
    assert status["reason"] == f"stopped by Ctrl-C at step {status['step']}"
    assert status["saved_step"] == status["step"] > 0
    assert 0 < status["metrics"]["loss"] < 20
    resumed = launcher("resume", "r")
    assert resumed.returncode == ExitCode.ok, resumed.stderr
    assert "step 100/100 | loss" in resumed.stderr
    assert launcher("status", "--json").stdout.count('"succeeded"') == 1
    assert "step 100/100" in launcher("logs", "r").stdout
    assert "step 1/100" in launcher("logs", "r", "--attempt", "1").stdout
    assert launcher("train", *WORDS).returncode == ExitCode.usage
    assert launcher("resume", "r").returncode == ExitCode.usage
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines()]
    assert sorted(set(steps)) == list(range(1, 101))
