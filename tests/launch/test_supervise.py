"""A supervisor that begins when nobody counts on it any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.errors import ExitCode
from launcher.launch import supervise
from launcher.launch.spec import job_file
from launcher.rundir import RunDir, State, write_json
from support.plans import launch_plan


@pytest.mark.parametrize(
    ("state", "attempt"), [(State.preparing, 2), (State.cancelled, 1), (State.failed, 1)]
)
def test_it_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: State, attempt: int
) -> None:
    run = RunDir(tmp_path / "r")
    write_json(job_file(run, 1), launch_plan(run, backend="local", nodes=()).to_json())
    run.set_status(state, attempt=attempt)
    before = run.status()
    monkeypatch.setattr(supervise, "_attempt", pytest.fail)
    monkeypatch.setattr(supervise.processes, "adopt_orphans", lambda: None)
    monkeypatch.setattr(supervise.signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    assert supervise.main([str(run), "1"]) == ExitCode.interrupted
    assert run.status() == before
    assert not (run.attempt(1) / "supervisor.json").exists()
