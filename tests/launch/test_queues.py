"""What every back end with a queue does with runs and arrays; ranks are stand-ins."""

from __future__ import annotations

import dataclasses
import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.config import create
from launcher.config.compose import compose
from launcher.config.schema import variants
from launcher.core.errors import ConfigError, ExitCode, StorageError
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir, State
from launcher.launch.queue import Ending, has_queue, queue_job
from launcher.launch.spec import AttemptState
from launcher.runs import start, status
from launcher.runs.cancel import cancel
from support.queues import Bench
from support.slurm import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WORDS = ("model=tiny", "data.train=builtin:quickstart-text", "batch.sequences=8")


@pytest.fixture
def queue(bench: Bench) -> Iterator[Bench]:
    """Empty again after each test."""
    yield bench
    bench.empty()


@dataclasses.dataclass
class Submitted:
    """A run of stand-ins in the queue."""

    run: RunDir
    job: str
    queue: Bench

    def await_step(self, step: int) -> None:
        """Wait until all ranks are at `step` or beyond."""

        def reached() -> bool:
            ranks = range(self.queue.ranks)
            beats = [read_json(self.run.heartbeat(rank), {"step": 0}) for rank in ranks]
            return all(beat["step"] >= step for beat in beats)

        wait_for(reached, f"step {step}")

    def end(self) -> State:
        """The state once the job is gone."""

        def is_gone() -> bool:
            found = self.queue.backend.observe([self.job]).get(self.job)
            return found is None or found.state is AttemptState.gone

        wait_for(is_gone, "the end of the job")
        return status.observed_run(self.run).state

    def steps(self) -> list[int]:
        """Steps that rank 0 has made, over all attempts."""
        return [json.loads(line)["step"] for line in self.run.metrics.read_text().splitlines()]


def plan_of(queue: Bench, run: RunDir):
    spec = start.spec(run, start.begin(run), compose.load(run.config))
    spec = dataclasses.replace(spec, module="slurm_rank", prepare_module="stand_in_prepare")
    return queue.backend.plan(spec)


@pytest.fixture
def submit(queue: Bench, weird_tmp_path: Path) -> Callable[..., Submitted]:
    """Submit a run whose stand-in ranks follow a script; its folder has spaces and quotes."""

    def submit(*words: str, **script) -> Submitted:
        made = [*WORDS, *queue.words, f"run.root={weird_tmp_path}", "run.name=r", *words]
        run = create.create(made)
        write_json(run.path / "stand_in.json", script)
        return Submitted(run, queue.backend.submit(plan_of(queue, run), attached=False), queue)

    return submit


def test_a_requeued_job_goes_on_in_a_further_attempt(submit, queue):
    made = submit(steps=60, step_s=0.1)
    made.await_step(3)
    queue.requeue(made.job)
    with pytest.raises(StorageError, match=f"job {made.job} of|another process works on"):
        start.begin(made.run)
    assert made.end() is State.succeeded
    assert made.steps() == list(range(1, 61))
    assert made.run.attempts() == [1, 2]
    assert all(made.run.log(number, queue.ranks - 1).is_file() for number in (1, 2))
    assert queue_job(made.run, 2) == made.job
    assert queue.backend.status(made.run, 2) is AttemptState.gone
    assert queue.backend.log(made.run, 2).is_file()
    assert queue.backend.logs(made.run, 2)[-1] == made.run.log(2, 0)


@pytest.mark.parametrize("code", [ExitCode.data, ExitCode.diverged, ExitCode.usage])
def test_failure_that_would_come_again_is_not_requeued(submit, queue, code):
    die = {"rank": queue.ranks - 1, "step": 3, "code": int(code)}
    made = submit(steps=20, step_s=0.1, die=die)
    assert made.end() is State.failed
    assert made.run.status().exit_code == code
    assert f"rank {queue.ranks - 1}" in made.run.status().reason
    assert made.run.attempts() == [1]


def test_cancel_waits_for_the_checkpoint(submit):
    made = submit(steps=1000, step_s=0.1)
    made.await_step(3)
    assert cancel(made.run).state is State.cancelled
    assert read_json(made.run.path / "saved.json")["step"] >= 3
    assert made.end() is State.cancelled
    assert made.run.attempts() == [1]


def test_a_job_cancelled_by_hand_is_not_requeued(submit, queue):
    made = submit(steps=1000, step_s=0.1)
    made.await_step(3)
    queue.cancel(made.job)
    assert made.end() is State.cancelled
    assert made.run.attempts() == [1]


def test_a_waiting_run_is_queued_and_cancelled(submit, queue):
    with queue.full():
        made = submit(steps=3)
        seen = status.observed_run(made.run)
        assert seen.state is State.queued
        assert f"job {made.job} waits" in seen.reason
        (row,) = status.listing(made.run.path.parent)
        assert row.status.state is State.queued
        assert cancel(made.run).state is State.cancelled
        assert made.end() is State.cancelled
    assert not made.run.metrics.exists()


def test_a_waiting_job_cancelled_by_hand_is_told(submit, queue):
    with queue.full():
        made = submit(steps=3)
        queue.cancel(made.job)
        assert made.end() is State.cancelled
    reason = status.observed_run(made.run).reason
    assert f"job {made.job} was cancelled in {queue.backend.title}" in reason
    assert queue.backend.observe([made.job])[made.job].ending is Ending.cancelled


def test_a_job_whose_answer_was_lost_is_found_and_not_made_twice(submit, queue):
    with queue.full():
        made = submit(steps=3)
        queue.lose_answer(made.run)
        assert queue_job(made.run, 1) is None
        assert status.observed_run(made.run).state is State.queued
        assert queue_job(made.run, 1) == made.job
        queue.lose_answer(made.run)
        spec = start.spec(made.run, 1, compose.load(made.run.config))
        assert queue.backend.submit(queue.backend.plan(spec), attached=False) == made.job
        assert queue.backend.recover(RunDir(made.run.path.parent / "nothing"), 1) is None
    assert made.end() is State.succeeded


def test_a_job_that_is_not_known_is_lost(queue, tmp_path):
    run = create.create([*WORDS, *queue.words, f"run.root={tmp_path}", "run.name=r"])
    run.set_status(State.queued, attempt=start.begin(run))
    write_json(run.attempt(1) / "job.json", {"backend": queue.name, "job": "987654"})
    assert queue.backend.observe(["987654"]) == {}
    seen = status.observed_run(run)
    assert seen.state is State.failed
    assert f"{queue.backend.title} does not know job 987654" in seen.reason
    assert start.begin(run) == 2


def test_an_array_of_runs_of_which_some_fail(queue, weird_tmp_path):
    plans, expected = [], []
    for index in range(5):
        words = [*WORDS, *queue.one, f"run.root={weird_tmp_path}", f"run.name=t{index}"]
        run = create.create(words)
        script = {"steps": 4}
        if index in (1, 4):
            script["die"] = {"rank": 0, "step": 2, "code": int(ExitCode.diverged)}
        if index == 2:
            # As a preemption: a signal that asks for a stop.
            script["die"] = {"rank": 0, "step": 2, "signal": int(signal.SIGTERM)}
            script |= {"steps": 20, "step_s": 0.1}
        write_json(run.path / "stand_in.json", script)
        plans.append(plan_of(queue, run))
        expected.append(State.failed if index in (1, 4) else State.succeeded)
    job = queue.backend.submit_many(plans, weird_tmp_path / "sweep", max_parallel=3)
    runs = [RunDir(plan.run) for plan in plans]
    tasks = [f"{job}_{index}" for index in range(5)]
    assert [queue_job(run, 1) for run in runs] == tasks
    (weird_tmp_path / "sweep" / "job.json").unlink()
    assert queue.backend.recover(runs[3], 1) == tasks[3]

    def left() -> list[str]:
        found = queue.backend.observe(tasks)
        return [task for task, job in found.items() if job.state is not AttemptState.gone]

    wait_for(lambda: not left(), "the array")
    assert [status.observed_run(run).state for run in runs] == expected
    assert [max(run.attempts()) for run in runs] == [1, 1, 2, 1, 1]


def test_many_runs_are_cancelled_at_once(queue, tmp_path):
    runs = []
    for name in "ab":
        words = [*WORDS, *queue.one, f"run.root={tmp_path}", f"run.name={name}"]
        runs.append(create.create(words))
        write_json(runs[-1].path / "stand_in.json", {"steps": 1000, "step_s": 0.1})
        queue.backend.submit(plan_of(queue, runs[-1]), attached=False)
    wait_for(lambda: all(run.metrics.exists() for run in runs), "the runs")
    queue.backend.cancel_many([(run, 1) for run in runs], now=False)
    assert not any(map(queue.has, runs))
    assert all((run.path / "saved.json").exists() for run in runs)


def test_what_the_queue_cannot_do_is_refused_before_it_is_asked(queue, tmp_path):
    many = ("launch.nodes=9", "batch.sequences=36")
    config = compose.compose([*WORDS, *queue.words, f"run.root={tmp_path}", *many])
    with pytest.raises(ConfigError, match="launch.nodes"):
        start.rehearsed(RunDir(tmp_path / "r"), config, 9 * queue.ranks, ask=True)
    assert list(tmp_path.iterdir()) == []


def test_a_queue_that_takes_jobs_is_well(queue):
    health = queue.backend.health()
    assert health.is_here
    assert health.found
    assert health.hint == ""


def test_a_row_says_that_it_has_a_queue(queue):
    assert has_queue(queue.name)
    assert queue.name in variants.LAUNCHERS
