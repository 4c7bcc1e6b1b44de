"""What the end of a run is told with."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.config.schema import variants
from launcher.core.errors import ExitCode
from launcher.core.files import write_json
from launcher.core.rundir import RunDir, State
from launcher.runs.follow import follow


def ended(run: RunDir, code: ExitCode, state: State = State.failed) -> int:
    run.attempt(1).mkdir(parents=True, exist_ok=True)
    run.log(1, 0).write_text("its log\n")
    run.set_status(state, attempt=1, exit_code=int(code), reason="its cause")
    return follow(run, 1, variants.LAUNCHERS.load("local")())


@pytest.mark.parametrize(
    ("code", "saved", "is_hinted"),
    [
        (ExitCode.storage, False, True),
        (ExitCode.hang, True, True),
        (ExitCode.internal, True, True),
        (ExitCode.internal, False, False),
        (ExitCode.diverged, True, False),
        (ExitCode.data, True, False),
    ],
)
def test_how_a_failed_run_goes_on_is_told_where_it_may(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    code: ExitCode,
    saved: bool,
    is_hinted: bool,
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDir("runs/r")
    if saved:
        checkpoint = run.checkpoints / "step-00000010"
        checkpoint.mkdir(parents=True)
        write_json(checkpoint / "manifest.json", {})
    assert ended(run, code) == code
    lines = capfd.readouterr().err.splitlines()
    assert "failed: its cause" in lines
    place = "step 10" if saved else "the beginning: no checkpoint was saved"
    hints = [line for line in lines if line.startswith("HINT")]
    assert hints == ([f"HINT: `launcher resume r` goes on from {place}"] if is_hinted else [])
