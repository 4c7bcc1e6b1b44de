"""Sweeps in every queue, with stub trials: one array, each trial on its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.core.errors import ExitCode
from launcher.launch.queue import array_of, queue_job
from launcher.sweeps.folder import SweepDir
from support.queues import Bench
from support.ranks import environment
from support.slurm import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
WORDS = (
    *("model=tiny", "data.train=builtin:quickstart-text", "batch.sequences=4"),
    *("run.name=s", "train.steps=4"),
)


@pytest.fixture
def queue(bench: Bench) -> Iterator[Bench]:
    """Empty again after each test."""
    yield bench
    bench.empty()


def _start(queue: Bench, folder: Path, *words: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "support.stub_trials", "control", *words],
        cwd=folder,
        env=environment(**queue.environ, **environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _launcher(queue: Bench, folder: Path, *words: str, **environ: str) -> str:
    with _start(queue, folder, *words, **environ) as process:
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return output


def _states(sweep: SweepDir) -> dict[int, str]:
    return {trial.number: trial.run.status().state.value for trial in sweep.trials()}


def _starts(sweep: SweepDir) -> dict[int, int]:
    files = {trial.number: trial.run.path / "starts" for trial in sweep.trials()}
    return {n: len(f.read_text().splitlines()) for n, f in files.items() if f.exists()}


def test_wrong_trials_of_an_array_fail_once_and_the_others_succeed(queue, weird_tmp_path):
    folder = weird_tmp_path
    words = ("optim.lr=1e-3,-1", "optim.weight_decay=0,1,2", "launch.max_parallel=4")
    output = _launcher(queue, folder, "train", "-m", *WORDS, *queue.one, *words)
    sweep = SweepDir(folder / "runs" / "s")
    codes = [trial.run.status().exit_code for trial in sweep.trials()]
    assert codes == [ExitCode.ok, ExitCode.diverged, ExitCode.data, *[ExitCode.usage] * 3], output
    assert _starts(sweep) == {0: 1, 1: 1, 2: 1}
    assert len({array_of(queue_job(trial.run, 1)) for trial in sweep.trials()[:3]}) == 1
    assert len(list(sweep.path.glob("array-*"))) == 1


def test_a_requeued_trial_goes_on_alone(queue, tmp_path):
    words = ("submit", "-m", *WORDS, *queue.one, "seed=1,2,3")
    _launcher(queue, tmp_path, *words, LAUNCHER_STUB_STEP_S="2")
    sweep = SweepDir(tmp_path / "runs" / "s")
    wait_for(lambda: 1 in _starts(sweep), "the second trial")
    queue.requeue(queue_job(sweep.trials()[1].run, 1))
    _launcher(queue, tmp_path, "sweep", "resume", "s")
    assert _states(sweep) == dict.fromkeys(range(3), "succeeded")
    assert _starts(sweep) == {0: 1, 1: 2, 2: 1}
    assert len(list(sweep.path.glob("array-*"))) == 1


def test_an_array_cancelled_by_hand_cancels_the_trials_of_a_followed_sweep(queue, tmp_path):
    words = ("train", "-m", *WORDS, *queue.one, "seed=1,2,3", "launch.max_parallel=1")
    with _start(queue, tmp_path, *words, LAUNCHER_STUB_STEP_S="60") as controller:
        sweep = SweepDir(tmp_path / "runs" / "s")
        wait_for(lambda: 0 in _starts(sweep), "the first trial")
        queue.cancel(array_of(queue_job(sweep.trials()[2].run, 1)))
        output, _ = controller.communicate(timeout=200)
    assert _states(sweep) == dict.fromkeys(range(3), "cancelled"), output
    assert _starts(sweep) == {0: 1}
    assert controller.returncode == ExitCode.interrupted, output


def test_optuna_through_the_queue(queue, tmp_path):
    space = ("sweep=optuna", "sweep.trials=5", "optim.lr=tag(log,interval(1e-5,1e-1))")
    words = ("train", "-m", *WORDS, *queue.one, *space, "launch.max_parallel=3")
    _launcher(queue, tmp_path, *words)
    sweep = SweepDir(tmp_path / "runs" / "s")
    assert _states(sweep) == dict.fromkeys(range(5), "succeeded")
    assert _starts(sweep) == dict.fromkeys(range(5), 1)
    arrays = [array_of(queue_job(trial.run, 1)) for trial in sweep.trials()]
    assert arrays.count(arrays[0]) == 3


def test_a_waiting_sweep_is_cancelled_whole(queue, tmp_path):
    with queue.full():
        _launcher(queue, tmp_path, "submit", "-m", *WORDS, *queue.one, "seed=1,2,3")
        sweep = SweepDir(tmp_path / "runs" / "s")
        assert {status.state.value for _, status in sweep.states()} == {"queued"}
        _launcher(queue, tmp_path, "sweep", "cancel", "s")
    assert _states(sweep) == dict.fromkeys(range(3), "cancelled")
    assert _starts(sweep) == {}
    assert not any(queue.has(trial.run) for trial in sweep.trials())
