"""The local back end with real processes: how runs end, and that nothing is left of them."""

from __future__ import annotations

import os
import signal
import time

import pytest

from launcher.core import processes
from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import State

pytestmark = pytest.mark.slow


def gone(pids):
    return not any(processes.alive(pid, time.time()) for pid in pids)


def test_one_rank_runs_to_its_end(launch):
    launched = launch("launch.processes=1", steps=3)
    code, shown = launched.end()
    assert code == 0, shown
    assert launched.run.status().state is State.succeeded
    assert "preparing data" in shown
    assert [f"step {n}/3" in shown for n in (1, 2, 3)] == [True] * 3
    assert "step 3/3" in launched.run.log(1, 0).read_text()
    assert read_json(launched.run.attempt(1) / "job.json")["command"][3:5] == ["-m", "stand_in"]


def test_two_ranks_run_under_the_agent(launch):
    launched = launch("launch.processes=2", "train.threads=1", steps=3)
    code, shown = launched.end()
    assert code == 0, shown
    assert launched.run.log(1, 1).is_file()
    assert (launched.run.path / "threads").read_text() == "1"
    assert read_json(launched.run.heartbeat(1))["step"] == 3


def test_prepared_data_is_not_prepared_again(launch):
    first = launch("launch.processes=1", steps=50, step_s=0.1)
    first.await_step(2)
    first.process.send_signal(signal.SIGINT)
    assert first.end()[0] == ExitCode.preempted
    again = launch(run=first.run)
    code, shown = again.end()
    assert code == 0, shown
    assert "preparing data" not in shown
    assert not (again.run.attempt(2) / "prepare.log").exists()


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_stops_with_a_checkpoint_and_resume_goes_on(launch, ranks, number):
    launched = launch(f"launch.processes={ranks}", steps=40, step_s=0.1)
    launched.await_step(3, ranks)
    pids = launched.pids()
    launched.process.send_signal(number)
    code, shown = launched.end()
    assert code == ExitCode.preempted, shown
    assert "launcher resume" in shown
    status = launched.run.status()
    assert (status.state, status.exit_code) == (State.preempted, 75)
    saved = read_json(launched.run.path / "saved.json")["step"]
    assert 3 <= saved < 40
    assert gone(pids)

    code, shown = launch(run=launched.run).end()
    assert code == 0, shown
    assert f"step {saved + 1}/40" in shown
    assert f"step {saved}/40" not in shown
    assert launched.run.status().attempt == 2


@pytest.mark.parametrize("ranks", [1, 2])
def test_second_ctrl_c_ends_at_once(launch, ranks):
    launched = launch(f"launch.processes={ranks}", steps=1000, step_s=0.1, deaf=True)
    launched.await_step(2, ranks)
    pids = launched.pids()
    launched.process.send_signal(signal.SIGINT)
    log = launched.run.log(1, 0)
    before = len(log.read_text().splitlines())
    # The ranks do not hear the first one: they go on.
    launched.await_true(lambda: len(log.read_text().splitlines()) > before + 3, "more steps")
    launched.process.send_signal(signal.SIGINT)
    code, shown = launched.end()
    assert code == ExitCode.interrupted, shown
    assert launched.run.status().state is State.cancelled
    assert gone(pids)


@pytest.mark.parametrize("ranks", [1, 2])
def test_killing_the_launcher_leaves_no_orphan(launch, ranks):
    launched = launch(f"launch.processes={ranks}", steps=1000, step_s=0.1)
    launched.await_step(2, ranks)
    pids = launched.pids()
    assert len(pids) >= ranks + 1
    launched.process.kill()
    launched.end()
    launched.await_true(lambda: gone(pids), "the end of all processes")
    # They were stopped, not killed: the checkpoint was written.
    assert launched.run.status().state is State.preempted


def test_killing_the_supervisor_leaves_no_orphan(launch):
    launched = launch("launch.processes=2", steps=1000, step_s=0.1)
    launched.await_step(2, 2)
    pids = launched.pids()
    supervisor = read_json(launched.run.attempt(1) / "supervisor.json")["pid"]
    os.kill(supervisor, signal.SIGKILL)
    code, shown = launched.end()
    assert code == ExitCode.preempted, shown
    launched.await_true(lambda: gone(pids), "the end of all processes")


def test_killed_rank_is_named(launch):
    die = {"rank": 1, "step": 3, "signal": int(signal.SIGKILL)}
    launched = launch("launch.processes=2", steps=1000, step_s=0.05, die=die)
    code, shown = launched.end()
    assert code == ExitCode.internal, shown
    status = launched.run.status()
    assert status.state is State.failed
    assert "rank 1 was killed by SIGKILL" in status.reason
    assert "memory" in status.reason
    assert status.reason in shown


def test_crash_of_a_single_rank_is_named(launch):
    die = {"rank": 0, "step": 2, "signal": int(signal.SIGSEGV)}
    launched = launch("launch.processes=1", steps=9, die=die)
    code, _ = launched.end()
    assert code == ExitCode.internal
    assert "rank 0 was killed by SIGSEGV" in launched.run.status().reason


def test_exit_code_of_a_rank_is_kept(launch):
    die = {"rank": 1, "step": 2, "code": int(ExitCode.data)}
    launched = launch("launch.processes=2", steps=1000, step_s=0.05, die=die)
    code, shown = launched.end()
    assert code == ExitCode.data, shown
    assert "rank 1 ended with exit code 3" in launched.run.status().reason


def test_failed_preparation_ends_the_run_with_its_code(launch):
    launched = launch("launch.processes=1", prepare_code=3)
    code, shown = launched.end()
    assert code == ExitCode.data
    assert "train.jsonl:3: not JSON" in shown
    status = launched.run.status()
    assert status.state is State.failed
    assert "train.jsonl:3: not JSON" in status.reason
    assert not launched.run.log(1, 0).exists()


def test_ctrl_c_during_the_preparation_ends_its_helpers_too(launch):
    launched = launch("launch.processes=1", prepare_s=60)
    log = launched.run.attempt(1) / "prepare.log"
    launched.await_true(lambda: log.exists() and log.read_text(), "the preparation")
    pids = launched.pids()
    assert len(pids) == 3  # supervisor, preparation, helper
    launched.process.send_signal(signal.SIGINT)
    code, _ = launched.end()
    assert code == ExitCode.preempted
    assert launched.run.status().state is State.preempted
    assert gone(pids)


def test_second_process_on_a_run_is_refused(launch):
    first = launch("launch.processes=1", steps=1000, step_s=0.1)
    first.await_step(2)
    code, shown = launch(run=first.run).end()
    assert code == ExitCode.storage
    assert "another process works on this run" in shown
    assert first.run.status().state is State.running
    assert first.run.attempts() == [1]


def test_submitted_run_survives_its_launcher_and_is_cancelled(launch):
    from launcher.runs.cancel import cancel

    submitted = launch("launch.processes=2", verb="submit", steps=1000, step_s=0.1)
    assert submitted.end()[0] == 0
    submitted.await_step(3, 2)
    run = submitted.run
    assert cancel(run).state is State.cancelled
    assert run.status().exit_code == ExitCode.interrupted
    assert read_json(run.path / "saved.json")["step"] >= 3
    beats = [read_json(run.heartbeat(rank))["pid"] for rank in (0, 1)]
    assert gone(beats)


def test_cancel_now_does_not_wait_for_a_checkpoint(launch):
    from launcher.runs.cancel import cancel

    submitted = launch("launch.processes=1", verb="submit", steps=1000, step_s=0.1, deaf=True)
    submitted.end()
    submitted.await_step(2)
    assert cancel(submitted.run, now=True).state is State.cancelled
    assert gone([read_json(submitted.run.heartbeat(0))["pid"]])
