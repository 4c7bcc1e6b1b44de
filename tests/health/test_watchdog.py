"""When a run counts as hung and whom the verdict names; ranks without torch that really hang."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core import processes, vitals
from launcher.core.errors import ExitCode
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir, State
from launcher.core.vitals import Beat
from launcher.health.watchdog import Patience
from support.ranks import environment

WORKER = Path(__file__).with_name("watchdog_worker.py")
NOW = 10_000.0


def beat(rank: int, age: float = 700.0, **changes) -> Beat:
    values = {"phase": "step", "step": 16, "limit": 600.0, "part": "forward", "turn": 20}
    values |= {"host": f"n{rank // 2}", "pid": 100 + rank, "attempt": 1, "time": NOW - age}
    return Beat(rank=rank, **{**values, **changes})


def by_rank(*beats: Beat) -> dict[int, Beat]:
    return {b.rank: b for b in beats}


# ---- the judgement


living = st.builds(
    beat,
    st.integers(0, 40),
    age=st.floats(0, 5000),
    phase=st.sampled_from([phase for phase in vitals.PHASES if phase != vitals.DONE]),
    limit=st.sampled_from([0.0, 60.0, 600.0, 1800.0]),
    turn=st.integers(0, 3),
    count=st.integers(0, 3),
    answered=st.booleans(),
    waiting=st.booleans(),
)
ended = st.builds(beat, st.integers(41, 50), phase=st.just(vitals.DONE), limit=st.just(0.0))


@given(st.lists(living, min_size=1, max_size=9), st.lists(ended, max_size=3))
def test_a_run_hangs_when_no_rank_is_within_its_limit(some, gone):
    beats = by_rank(*some, *gone)
    late = [b for b in beats.values() if 0 < b.limit < NOW - b.time]
    expected = len(late) == len([b for b in beats.values() if b.phase != vitals.DONE])
    assert vitals.is_stalled(beats, NOW) is expected
    # A sign of life from any one of them is enough, and time alone does not clear a run.
    one = some[0].rank
    alive = {**beats, one: beat(one, age=1.0)}
    assert not vitals.is_stalled(alive, NOW)
    assert not expected or vitals.is_stalled(beats, NOW + 1)


@given(st.lists(ended, max_size=3))
def test_ranks_that_have_ended_hang_no_more(gone):
    assert not vitals.is_stalled(by_rank(*gone), NOW)


@given(st.lists(living, min_size=1, max_size=9), st.lists(ended, max_size=3))
def test_a_verdict_names_real_ranks_and_every_silent_one(some, gone):
    beats = by_rank(*some, *gone)
    verdict = vitals.judge(beats, NOW)
    alive = {b.rank for b in beats.values() if b.phase != vitals.DONE}
    assert set(verdict.silent) == {rank for rank in alive if not beats[rank].answered}
    assert set(verdict.odd) <= set(beats)
    if 0 < len(verdict.silent) < len(alive):
        assert verdict.odd == verdict.silent
    for rank in verdict.odd[:8]:
        assert f"rank {rank} on host {beats[rank].host}" in verdict.reason


@given(st.lists(living, min_size=2, max_size=9, unique_by=lambda b: b.rank))
def test_a_heartbeat_survives_its_file(some):
    assert [vitals.from_json(b.to_json()) for b in some] == some
    assert vitals.from_json({"rank": 0}) is None
    assert vitals.from_json(None) is None


def test_a_rank_that_does_not_answer_is_the_odd_one():
    here = {"answered": True, "waiting": True, "where": "all_reduce", "part": "update"}
    beats = by_rank(beat(0, **here), beat(1, **here), beat(2, **here), beat(3, age=612.0))
    verdict = vitals.judge(beats, NOW, lambda b: f"process {b.pid} is stopped")
    assert verdict.odd == verdict.silent == (3,)
    assert verdict.reason == (
        "no rank makes progress: rank 3 on host n1 stays in step 17, forward (last sign of life"
        " 612 s ago) and does not answer: process 103 is stopped;"
        " each of ranks 0-2 waits in step 17, update, at all_reduce"
    )


def test_a_rank_that_is_behind_is_the_odd_one():
    ahead = {"answered": True, "waiting": True, "where": "all_reduce"}
    late = beat(2, answered=True, turn=19, phase="save", part="", where="x.py:3 f")
    verdict = vitals.judge(by_rank(beat(0, **ahead), beat(1, **ahead), late), NOW)
    assert (verdict.odd, verdict.silent) == ((2,), ())
    assert "rank 2 on host n1 stays in save (last sign of life 700 s ago), at x.py:3 f" in (
        verdict.reason
    )


def test_a_rank_that_waits_for_nobody_is_the_odd_one():
    waits = {"answered": True, "waiting": True}
    lost = beat(1, answered=True, where="sft.py:9 loss")
    assert vitals.judge(by_rank(beat(0, **waits), lost, beat(2, **waits)), NOW).odd == (1,)


def test_a_rank_that_has_ended_is_the_odd_one():
    waits = {"answered": True, "waiting": True}
    gone = beat(2, phase=vitals.DONE, limit=0.0)
    verdict = vitals.judge(by_rank(beat(0, **waits), beat(1, **waits), gone), NOW)
    assert verdict.odd == (2,)
    assert "rank 2 on host n1 has ended" in verdict.reason


def test_where_all_ranks_wait_alike_none_is_accused():
    waits = {"answered": True, "waiting": True}
    verdict = vitals.judge(by_rank(*(beat(rank, **waits) for rank in range(4))), NOW)
    assert verdict.odd == ()
    assert "look at the network" in verdict.reason


def test_time_in_which_the_watcher_was_suspended_does_not_count():
    now = [0.0]
    patience, silent = Patience(1.0, clock=lambda: now[0]), beat(0)
    for now[0] in (1.0, 2.0, 3.0):
        spent = patience.spent_on(silent)
    assert spent == 2.0
    now[0] = 3600.0  # the whole job was suspended for an hour
    assert patience.spent_on(silent) <= 2.0 + 4.0
    assert patience.spent_on(beat(0, age=1.0)) == 0.0


def test_files_of_earlier_attempts_and_torn_ones_do_not_count(tmp_path):
    run = RunDir(tmp_path)
    for rank, attempt in enumerate((1, 2, 2)):
        write_json(run.heartbeat(rank), beat(rank, attempt=attempt).to_json())
    run.heartbeat(3).write_text('{"rank": 3')
    assert list(vitals.read(run, 2)) == [1, 2]


# ---- processes


class Workers:
    """Ranks of tests/health/watchdog_worker.py with one run folder."""

    def __init__(self, folder: Path, limits: str, *tasks: tuple[str, ...]) -> None:
        self.run = RunDir(folder)
        self.ranks = [
            subprocess.Popen(
                [sys.executable, WORKER, folder, str(rank), str(len(tasks)), limits, *mine],
                env=environment(LAUNCHER_TESTS_ZYGOTE=""),  # its own process id is what is stopped
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            for rank, mine in enumerate(tasks)
        ]

    def await_part(self, rank: int, part: str) -> None:
        """Wait until a rank's heartbeat shows this part of a step."""
        path, end = self.run.heartbeat(rank), time.monotonic() + 30
        while (read_json(path) or {}).get("part") != part:
            assert time.monotonic() < end
            time.sleep(0.01)

    def end(self) -> list[int]:
        """Exit codes, in order of ranks; the output is kept."""
        done = [rank.communicate(timeout=60)[0] for rank in self.ranks]
        self.output = "\n".join(done)
        return [rank.returncode for rank in self.ranks]

    def stacks(self, rank: int) -> str:
        """What a rank has dumped."""
        return vitals.stacks_file(self.run, 1, rank).read_text()


@pytest.fixture
def start(tmp_path):
    started = []

    def start(limits: str, *tasks: tuple[str, ...]) -> Workers:
        started.append(Workers(tmp_path, limits, *tasks))
        return started[-1]

    yield start
    for workers in started:
        for rank in workers.ranks:
            rank.kill()
            rank.communicate()


@pytest.mark.slow
def test_a_deadlock_ends_all_ranks_with_stacks_of_each(start):
    workers = start('{"timeout_s": 1}', ("work=0.3", "stuck"), ("work=0.3", "stuck"))
    assert workers.end() == [ExitCode.hang, ExitCode.hang]
    status = workers.run.status()
    assert (status.state, status.exit_code) == (State.failed, ExitCode.hang)
    for rank in (0, 1):
        assert "in stuck" in workers.stacks(rank)
    assert read_json(vitals.stall_file(workers.run, 1))["reason"] == status.reason


@pytest.mark.slow
def test_native_code_that_holds_the_interpreter_is_dumped_and_killed(start):
    workers = start('{"timeout_s": 1}', ("work=0.3", "stuck"), ("work=0.3", "holds_interpreter"))
    assert workers.end() == [ExitCode.hang, -signal.SIGKILL]
    assert "in holds_interpreter" in workers.stacks(1)
    reason = workers.run.status().reason
    assert "rank 1 on host" in reason
    assert "does not answer: process" in reason
    assert "is running" in reason


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_rank_is_named_and_killed(start, victim):
    tasks = ("work=0.3", "wait=600")
    workers = start('{"timeout_s": 1.5}', tasks, tasks)
    workers.await_part(victim, "update")
    os.kill(workers.ranks[victim].pid, signal.SIGSTOP)
    codes = workers.end()
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == ExitCode.hang
    assert f"rank {victim} on host" in workers.run.status().reason
    assert "is stopped by a signal (state T" in workers.run.status().reason
    assert "did not answer" in workers.stacks(victim)
    assert "in wait" in workers.stacks(1 - victim)


@pytest.mark.slow
def test_a_long_phase_with_signs_of_life_is_no_hang(start):
    tasks = ("work=0.3", "evaluate=3", "work=0.3")
    workers = start('{"timeout_s": 1, "eval_s": 1}', tasks, tasks)
    assert workers.end() == [0, 0]
    assert not list(workers.run.attempt(1).iterdir())


@pytest.mark.slow
def test_ranks_that_wait_for_one_that_saves_are_no_hang(start):
    workers = start(
        '{"timeout_s": 3, "save_s": 60}',
        ("work=0.3", "save=7", "work=10"),  # for as long as the other may have begun later
        ("work=0.3", "wait=7", "work=0.1"),
    )
    assert workers.end() == [0, 0]


@pytest.mark.slow
def test_limits_of_zero_never_end_a_rank(start):
    workers = start('{"timeout_s": 0}', ("work=0.2", "wait=2"), ("work=0.2", "wait=2"))
    assert workers.end() == [0, 0]


@pytest.mark.slow
def test_a_job_that_was_suspended_and_continued_goes_on(start):
    tasks = ("work=4",)
    workers = start('{"timeout_s": 2}', tasks, tasks)
    for rank in (0, 1):
        workers.await_part(rank, "forward")
    for number, pause in ((signal.SIGSTOP, 3.0), (signal.SIGCONT, 0.0)):
        for rank in workers.ranks:
            os.kill(rank.pid, number)
        time.sleep(pause)
    assert workers.end() == [0, 0]


@pytest.mark.slow
def test_stacks_of_a_healthy_rank_on_request(start):
    workers = start("{}", ("work=1.5",))
    workers.await_part(0, "forward")
    os.kill(workers.ranks[0].pid, signal.SIGUSR2)
    assert workers.end() == [0]
    assert "in work" in workers.stacks(0)


@pytest.mark.slow
def test_processes_are_described():
    child = subprocess.Popen(["sleep", "100"])
    try:
        os.kill(child.pid, signal.SIGSTOP)
        while not processes.is_stopped(child.pid):
            time.sleep(0.01)
        text = processes.describe(child.pid, time.time())
        assert text.startswith(f"process {child.pid} is stopped by a signal (state T")
        assert text.endswith("sleep 100)")
    finally:
        child.kill()
        child.wait()
    assert processes.describe(child.pid, time.time()) == f"process {child.pid} is gone"
