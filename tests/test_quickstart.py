"""The main job as a new user runs it: a base is pre-trained, then tuned, and the gain is clear."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow


@pytest.mark.timeout(600)
def test_quickstart_shows_a_gain_far_outside_its_interval(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    command = [sys.executable, "-m", "launcher.cli", "train", "experiment=quickstart", "run.name=q"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "*****" not in done.stdout + done.stderr  # a warning of torchrun's
    run = tmp_path / "runs" / "q"
    metrics = json.loads((run / "eval" / "comparison.json").read_text())["metrics"]
    assert metrics["exact_match"]["verdict"] == "better"
    assert metrics["exact_match"]["interval"][0] > 0.3
    assert metrics["loss"]["verdict"] == "better"
    assert metrics["loss"]["interval"][1] < -1
    assert (run / "report.html").is_file()
    # The base is kept: a second start finds it.
    assert list((tmp_path / "cache" / "bases").glob("*/config.json"))
