"""Training in which a rank is stopped, stuck or slow: detected, named, ended, resumed."""

import json
import os
import signal
import threading
import time

import pytest

from launcher.core import vitals
from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import State
from support import project
from support.project import LAUNCHER, TORCHRUN, Project

pytestmark = pytest.mark.slow

TRAIN = (*LAUNCHER, "train")
STEPS = 40
RECIPE = (
    *("engine=zero2", "batch.sequences=2", f"train.steps={STEPS}", "train.log_every_steps=4"),
    *("checkpoint.every_steps=4", "launch.processes=2", "watchdog.timeout_s=6"),
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    made = Project(tmp_path_factory.mktemp("watchdog"))
    made.write_data(project.conversations(60))
    return made


@pytest.fixture(scope="module")
def undisturbed(here):
    """Files of the last checkpoint of a run that nothing happens to."""
    done = here.run(TRAIN, *here.words("undisturbed", *RECIPE))
    assert done.code == ExitCode.ok, done.output
    return project.checkpoint_files(here.folder_of("undisturbed"))[STEPS]


def beat_of(run, rank):
    return vitals.from_json(read_json(run.heartbeat(rank)))


def stop_rank(started, run, rank, condition):
    """SIGSTOP a rank as soon as its heartbeat fulfils a condition."""

    def is_there():
        beat = beat_of(run, rank)
        return beat is not None and condition(beat)

    started.wait_until(is_there, "the moment to stop a rank")
    project.kill_rank(run, rank, signal.SIGSTOP)
    return project.rank_pid(run, rank)


@pytest.mark.parametrize("victim", [0, 1])
def test_stopped_rank_is_named_and_the_resumed_run_equals_an_undisturbed_one(
    here, undisturbed, victim
):
    name = f"stopped-{victim}"
    running = here.start(TRAIN, *here.words(name, *RECIPE))
    run = here.folder_of(name)
    pid = stop_rank(running, run, victim, lambda beat: beat.phase == "step" and beat.step >= 10)
    done = running.end()
    assert done.code == ExitCode.hang, done.output
    status = run.status()
    assert (status.state, status.exit_code) == (State.failed, ExitCode.hang)
    host = beat_of(run, 0).host
    assert f"rank {victim} on host {host} stays in step" in status.reason
    assert f"process {pid} is stopped by a signal (state T" in status.reason
    assert f"rank {1 - victim} waits in step" in status.reason
    assert "launcher resume" in done.output
    stacks = vitals.stacks_file(run, 1, 1 - victim).read_text()
    assert "in train" in stacks
    assert "torch/distributed/" in stacks
    assert "did not answer" in vitals.stacks_file(run, 1, victim).read_text()
    assert not project.is_alive(pid)

    done = here.run((*LAUNCHER, "resume"), name)
    assert done.code == ExitCode.ok, done.output
    assert project.checkpoint_files(run)[STEPS] == undisturbed
    assert run.status().state is State.succeeded


def test_only_rank_of_a_run_is_stopped(here):
    """No other rank is there to see it: the supervisor does."""
    words = ("batch.sequences=2", "train.steps=100000", "watchdog.timeout_s=2")
    running = here.start(TRAIN, *here.words("alone", *words))
    run = here.folder_of("alone")
    pid = stop_rank(running, run, 0, lambda beat: beat.phase == "step" and beat.step > 2)
    done = running.end()
    assert done.code == ExitCode.hang, done.output
    assert (run.status().state, run.status().exit_code) == (State.failed, ExitCode.hang)
    assert f"process {pid} is stopped by a signal" in run.status().reason


def test_rank_stuck_in_start_under_torchrun(here):
    words = ("batch.sequences=2", "train.steps=20", "watchdog.start_s=12")
    running = here.start(TORCHRUN, *here.words("start", *words))
    run = here.folder_of("start")
    pid = stop_rank(running, run, 1, lambda beat: beat.phase == "start")
    done = running.end()
    assert done.code != ExitCode.ok, done.output
    status = run.status()
    assert (status.state, status.exit_code) == (State.failed, ExitCode.hang)
    assert "rank 1 on host" in status.reason
    assert "stays in start" in status.reason
    assert not project.is_alive(pid)


def slow_ranks(run):
    return [entry["rank"] for entry in run.status().slow]


def test_slow_rank_is_reported_with_its_host(here):
    """Rank 1 gets a fortieth of its time, also in its forward passes."""
    words = ("engine=zero2", "batch.sequences=2", "train.steps=100000", "launch.processes=2")
    limits = ("watchdog.slow_steps=3", "watchdog.timeout_s=60", "train.log_every_steps=2")
    running = here.start(TRAIN, *here.words("slow", *words, *limits))
    run = here.folder_of("slow")
    running.wait_until(lambda: run.metrics.exists() and project.losses(run), "a line")
    pid, ended = project.rank_pid(run, 1), threading.Event()

    def slow_down():
        while not ended.is_set():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.2)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.005)

    brake = threading.Thread(target=slow_down)
    brake.start()
    try:
        running.wait_until(lambda: "rank 1 on" in running.output, "the report")
        running.wait_until(lambda: slow_ranks(run) == [1], "the status")
        (slow,) = run.status().slow

        def shown():  # the numbers of a later line, where the machine was busy at this one
            return here.run((*LAUNCHER, "status"), "slow").output

        running.wait_until(lambda: "slowest  rank 1 on " in shown(), "the slowest rank")
        seen = shown()
    finally:
        ended.set()
        brake.join()
    host = beat_of(run, 1).host
    assert (slow["host"], slow["factor"] > 1.5) == (host, True)
    assert f"rank 1 on host {host} is slow" in running.output
    assert "slow     rank 1 on " in seen
    recovered = f"rank 1 on host {host} is no longer slow"
    running.wait_until(lambda: recovered in running.output, "the recovery")
    running.wait_until(lambda: not slow_ranks(run), "the status without it")
    running.process.send_signal(signal.SIGINT)
    assert running.end().code == ExitCode.preempted
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert max(line["step_skew"] for line in lines) > 1.5
    assert all(line["step_skew"] >= 1.0 for line in lines)


def test_an_evaluation_longer_than_its_limit_is_no_hang(here, undisturbed):
    """Each batch is a sign of life, and so are the parts of the comparison at the end."""
    words = ("eval=default", "eval.batch_tokens=1", "batch.sequences=2", "train.steps=2")
    share = ("data.validation_share=0.5", "launch.processes=2", "watchdog.eval_s=2")
    here.write_data(project.conversations(4000))
    try:
        done = here.run(TRAIN, *here.words("long-eval", *words, *share))
    finally:
        here.write_data(project.conversations(60))
    assert done.code == ExitCode.ok, done.output
    base = read_json(here.folder_of("long-eval").eval / "base.json")
    assert base["seconds"] > 2
