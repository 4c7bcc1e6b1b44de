"""Controllers that run, stop, are killed and go on, over stub trials in real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.core.errors import ExitCode
from launcher.core.rundir import State
from launcher.sweeps import folder, proposals
from launcher.sweeps.folder import SweepDir
from support import hints
from support.ranks import environment

pytestmark = pytest.mark.slow
WORDS = (
    "model=tiny",
    "data.train=builtin:quickstart-text",
    "batch.sequences=4",
    "train.steps=4",
    "run.name=s",
)
OPTUNA = ("sweep=optuna", "sweep.startup_trials=2", "optim.lr=tag(log,interval(1e-5,1e-1))")
TIMEOUT_S = 120


class Shell:
    """A folder in which commands are run with stub trials."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.sweep = SweepDir(path / "runs" / "s")

    def start(self, *words: str, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "support.stub_trials", "control", *words],
            cwd=self.path,
            env=environment(**environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str, code: int = 0, **environ: str) -> str:
        process = self.start(*words, **environ)
        output, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == code, output
        return output

    def states(self) -> dict[int, str]:
        return {trial.number: trial.state(trial.status()) for trial in self.sweep.trials()}

    def starts(self) -> dict[int, int]:
        """How often each trial's ranks were started."""
        files = {trial.number: trial.run.path / "starts" for trial in self.sweep.trials()}
        return {n: len(f.read_text().splitlines()) for n, f in files.items() if f.exists()}


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    return Shell(tmp_path)


def _wait(condition: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.02)


def test_wrong_trials_fail_once_and_the_others_succeed(shell: Shell) -> None:
    words = ("optim.lr=1e-3,-1", "optim.weight_decay=0,1,2", "launch.max_parallel=2")
    output = shell.run("train", "-m", *WORDS, *words)
    assert shell.states() == {
        0: "succeeded",
        1: "failed",
        2: "failed",
        **dict.fromkeys((3, 4, 5), "failed"),
    }
    codes = [trial.run.status().exit_code for trial in shell.sweep.trials()]
    usage = [ExitCode.usage] * 3
    assert codes == [ExitCode.ok, ExitCode.diverged, ExitCode.data, *usage]
    assert shell.starts() == {0: 1, 1: 1, 2: 1}
    assert "optim.lr: -1.0 is out of range" in output
    # The same command again finds nothing to do.
    shell.run("train", "-m", *WORDS, *words)
    assert shell.starts() == {0: 1, 1: 1, 2: 1}
    best = shell.run("sweep", "best", "s")
    assert best.splitlines()[-1] == "optim.lr=1e-3 optim.weight_decay=0"
    other = shell.run("train", "-m", *WORDS, "optim.lr=1e-3", code=ExitCode.usage)
    shell.run(*hints.commands(other)[0])  # finds nothing to do either
    assert shell.starts() == {0: 1, 1: 1, 2: 1}


def test_a_killed_controller_of_an_optuna_sweep_goes_on(shell: Shell) -> None:
    total = 7
    words = (*WORDS, *OPTUNA, f"sweep.trials={total}", "launch.max_parallel=2")
    # Once between a folder and its start, once while trials run for longer than a restart takes.
    moments = (lambda: shell.sweep.trial_path(1).is_dir(), lambda: 3 in shell.starts())
    for moment, step_s in zip(moments, ("0.1", "3"), strict=True):
        controller = shell.start("train", "-m", *words, LAUNCHER_STUB_STEP_S=step_s)
        _wait(moment, controller)
        os.killpg(controller.pid, signal.SIGKILL)
        controller.communicate()
    output = shell.run("sweep", "resume", "s", LAUNCHER_STUB_STEP_S="0.05")
    assert "goes on, started before" in output
    assert shell.states() == dict.fromkeys(range(total), "succeeded")
    assert shell.starts() == dict.fromkeys(range(total), 1)
    found = proposals.load(shell.sweep, shell.sweep.request())
    assert [trial.state.name for trial in found.trials] == ["COMPLETE"] * total
    for trial, frozen in zip(shell.sweep.trials(), found.trials, strict=True):
        assert frozen.value == folder.objective(trial, "eval/loss")
        assert trial.words == (f"optim.lr={frozen.params['optim.lr']:.6g}",)


def test_proposals_do_not_depend_on_kills(shell: Shell, tmp_path: Path) -> None:
    undisturbed = Shell(tmp_path / "other")
    undisturbed.path.mkdir()
    words = (*WORDS, *OPTUNA, "sweep.trials=4")
    undisturbed.run("train", "-m", *words)
    controller = shell.start("train", "-m", *words)
    _wait(lambda: shell.sweep.trial_path(2).is_dir(), controller)
    os.killpg(controller.pid, signal.SIGKILL)
    controller.communicate()
    shell.run("train", "-m", *words)
    chosen = [[trial.words for trial in each.sweep.trials()] for each in (undisturbed, shell)]
    assert chosen[0] == chosen[1]


def test_wrong_proposals_fail_once(shell: Shell) -> None:
    words = (*WORDS, "sweep=optuna", "sweep.trials=6", "optim.lr=1e-3,-1", "seed=1,2,3")
    shell.run("train", "-m", *words)
    found = proposals.load(shell.sweep, shell.sweep.request())
    for trial, frozen in zip(shell.sweep.trials(), found.trials, strict=True):
        wrong = "optim.lr=-1" in trial.words
        assert frozen.state.name == ("FAIL" if wrong else "COMPLETE")
        assert ("out of range" in trial.run.status().reason) == wrong
    assert {trial.words[0] for trial in shell.sweep.trials()} == {"optim.lr=1e-3", "optim.lr=-1"}
    assert set(shell.starts().values()) == {1}


def test_trials_that_fall_behind_are_pruned(shell: Shell) -> None:
    pruning = ("sweep.pruner=median", "sweep.prune_from=2", "eval.every_steps=1")
    words = (*WORDS, "sweep=optuna", *pruning, "sweep.trials=6", "sweep.startup_trials=2")
    more = ("optim.lr=1e-3,1e-1", "train.steps=12", "launch.max_parallel=1")
    shell.run("train", "-m", *words, *more, LAUNCHER_STUB_STEP_S="0.2")
    states = shell.states()
    assert "pruned" in states.values()
    assert set(states.values()) <= {"pruned", "succeeded"}
    found = proposals.load(shell.sweep, shell.sweep.request())
    for trial, frozen in zip(shell.sweep.trials(), found.trials, strict=True):
        pruned = states[trial.number] == "pruned"
        assert frozen.state.name == ("PRUNED" if pruned else "COMPLETE")
        if pruned:
            assert trial.words == ("optim.lr=1e-1",)
            assert trial.run.status().state is State.cancelled
            assert trial.run.status().reason.startswith(f"pruned at step {trial.pruned['step']}")
            assert max(frozen.intermediate_values) < 12
    best = json.loads(shell.run("sweep", "best", "s", "--json"))
    assert best["overrides"] == ["optim.lr=1e-3"]


def test_an_interrupted_controller_stops_its_trials(shell: Shell) -> None:
    words = (*WORDS, "train.steps=200", "optim.lr=1e-3,1e-2,1e-1")
    controller = shell.start("train", "-m", *words)
    _wait(lambda: shell.starts(), controller)
    controller.send_signal(signal.SIGINT)
    output, _ = controller.communicate(timeout=TIMEOUT_S)
    assert controller.returncode == ExitCode.preempted, output
    assert shell.states() == {0: "preempted", 1: "preparing", 2: "preparing"}
    (again,) = hints.commands(output)[:1]
    assert again[:2] == ["sweep", "resume"]
    shell.run(*again)
    assert shell.states() == dict.fromkeys(range(3), "succeeded")


@pytest.mark.parametrize("search", [(), ("sweep=optuna", "sweep.trials=2")])
def test_a_trial_that_met_a_full_disk_is_tried_again(shell: Shell, search: tuple[str, ...]) -> None:
    words = (*WORDS, *search, "optim.lr=1e-3,1e-2", "optim.weight_decay=3")
    output = shell.run("train", "-m", *words, code=ExitCode.storage)
    assert shell.states() == {0: "failed", 1: "failed"}
    shell.run(*hints.commands(output)[-1])
    assert shell.states() == {0: "succeeded", 1: "succeeded"}
    assert shell.starts() == {0: 2, 1: 2}


def test_a_sweep_whose_output_nobody_reads_stops_its_trials(shell: Shell) -> None:
    words = (*WORDS, "train.steps=200", "optim.lr=1e-3,1e-2,1e-1")
    controller = shell.start("train", "-m", *words)
    assert controller.stdout is not None
    while "trial-0000  started" not in controller.stdout.readline():
        pass
    controller.stdout.close()
    controller.send_signal(signal.SIGHUP)
    assert controller.wait(TIMEOUT_S) == ExitCode.preempted
    assert shell.states() == {0: "preempted", 1: "preparing", 2: "preparing"}


def test_a_cancelled_sweep_has_no_controller_and_no_trials_left(shell: Shell) -> None:
    words = (*WORDS, "train.steps=900", "optim.lr=1e-3,1e-2")
    controller = shell.start("train", "-m", *words)
    _wait(lambda: shell.starts(), controller)
    shell.run("sweep", "cancel", "s", "--now")
    controller.communicate(timeout=TIMEOUT_S)
    assert controller.returncode == -signal.SIGKILL
    assert shell.states() == {0: "cancelled", 1: "cancelled"}
    assert shell.starts() == {0: 1}


def test_a_sweep_in_the_background(shell: Shell) -> None:
    # The controller is the real one, so its trials are.
    assert shell.run("submit", "-m", *WORDS, "optim.lr=1e-3,1e-2").splitlines()[-2] == "s"
    end = time.monotonic() + TIMEOUT_S
    log = shell.sweep.controller_log
    while not (log.exists() and "2 succeeded" in log.read_text()):
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.05)
    codes = [trial.run.status().exit_code for trial in shell.sweep.trials()]
    assert codes == [ExitCode.ok, ExitCode.ok]


def test_a_rank_starts_no_sweep(shell: Shell) -> None:
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    output = shell.run("train", "-m", *WORDS, "optim.lr=1,2", code=ExitCode.usage, **ranks)
    assert "this process is rank 1 of 2" in output
    assert not shell.sweep.path.exists()
