"""Real runs of a stand-in for the run plane, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from launcher.config import create
from launcher.core import processes
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir
from launcher.core.runtime import child_environment

HERE = Path(__file__).resolve().parent
WORDS = ("model=tiny", "data.train=builtin:quickstart-text", "batch.sequences=8")
TIMEOUT_S = 60


@dataclass
class Launched:
    """A launcher process and its run."""

    run: RunDir
    process: subprocess.Popen[str]

    def await_step(self, step: int, ranks: int = 1) -> None:
        """Wait until all ranks are at `step` or beyond."""
        for rank in range(ranks):
            beat = self.run.heartbeat(rank)
            self.await_true(
                lambda beat=beat: (read_json(beat) or {"step": 0})["step"] >= step, f"{beat} {step}"
            )

    def await_true(self, condition: Callable[[], Any], what: str) -> Any:
        """The first true value of `condition`; fails after a minute."""
        end = time.monotonic() + TIMEOUT_S
        while time.monotonic() < end:
            value = condition()
            if value:
                return value
            time.sleep(0.02)
        raise AssertionError(f"waited in vain for {what}")

    def pids(self) -> list[int]:
        """All processes of the run: supervisor, agent, ranks."""
        return processes.descendants(self.process.pid)

    def end(self) -> tuple[int, str]:
        """Exit code and stderr of the launcher."""
        _, stderr = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, stderr


@pytest.fixture
def make_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., RunDir]:
    """Make a run folder whose stand-in ranks follow a script; nothing is prepared yet."""
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))

    def make(*words: str, **script: Any) -> RunDir:
        run = create.create([*WORDS, f"run.root={tmp_path}", "run.name=r", *words])
        write_json(run.path / "stand_in.json", script)
        return run

    return make


@pytest.fixture
def launch(make_run: Callable[..., RunDir]) -> Iterator[Callable[..., Launched]]:
    """Start `launcher train` (or another verb) on a new run, or on `run`."""
    started = []

    def launch(
        *words: str, run: RunDir | None = None, verb: str = "train", **script: Any
    ) -> Launched:
        run = run or make_run(*words, **script)
        paths = os.pathsep.join([str(HERE), str(HERE.parent.parent)])
        process = subprocess.Popen(
            [sys.executable, "-m", "stand_in_launch", verb, str(run)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=child_environment(PYTHONPATH=paths),
            start_new_session=True,
        )
        started.append(process)
        return Launched(run, process)

    yield launch
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
