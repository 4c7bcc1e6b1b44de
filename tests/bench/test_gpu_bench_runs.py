"""The GPU benchmark's own code, on the CPU with a tiny model: it must not rot where no GPU is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).with_name("gpu.py")


def test_a_row_is_measured_and_printed(tmp_path):
    report = tmp_path / "report.json"
    words = ["--device=cpu", "--models=tiny", "--tools=launcher", "--checkpointing=on"]
    words += ["--steps=3", "--length=128", "--documents=40", "--sequences=4", "--micro=2"]
    command = [sys.executable, str(SCRIPT), *words, f"--json={report}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(report.read_text())["rows"]
    assert "error" not in row
    assert row["micro"] == 2
    assert row["attention"] == "document"
    assert 0 < row["target_tokens_per_s"] < row["tokens_per_s"]
    assert 0 < row["mfu_measured"] < 1
    assert row["mfu_data_sheet"] is None
    assert 0 < row["memory_gib"] < 8
    assert f"{row['tokens_per_s']:,.0f}" in done.stdout
