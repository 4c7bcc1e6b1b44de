"""A supervisor that begins when nobody counts on it any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.core.errors import ExitCode
from launcher.core.files import write_json
from launcher.core.rundir import RunDir, State
from launcher.launch import supervisor
from launcher.launch.spec import job_file
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
    monkeypatch.setattr(supervisor, "_attempt", pytest.fail)
    monkeypatch.setattr(supervisor.processes, "adopt_orphans", lambda: None)
    monkeypatch.setattr(supervisor.signal, "signal", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    assert supervisor.main([str(run), "1"]) == ExitCode.interrupted
    assert run.status() == before
    assert not (run.attempt(1) / "supervisor.json").exists()
