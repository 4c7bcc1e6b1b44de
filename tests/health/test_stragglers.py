"""Which rank is slow: streaks over the median of own times; what own time holds."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from launcher.config.schema.launch import WatchdogConfig
from launcher.core.files import write_json
from launcher.core.rundir import RunDir, State
from launcher.health.stragglers import Change, OwnTime, Stragglers, report_slow

times = st.integers(2, 6).flatmap(
    lambda world: st.lists(
        st.lists(st.sampled_from([1.0, 1.4, 1.6, 4.0]), min_size=world, max_size=world),
        min_size=1,
        max_size=30,
    )
)


@given(times, st.integers(1, 4))
def test_a_rank_is_slow_after_that_many_steps_over_the_median_in_a_row(table, steps):
    stragglers = Stragglers(len(table[0]), 1.5, steps)
    changes = [stragglers.add(row) for row in table]
    over = [[own > 1.5 * statistics.median_low(row) for own in row] for row in table]
    for rank in range(len(table[0])):
        slow = False
        for index in range(len(table)):
            last = [row[rank] for row in over[max(0, index - steps + 1) : index + 1]]
            before = slow
            if len(last) == steps and len(set(last)) == 1:
                slow = last[0]
            told = [change.slow for change in changes[index] if change.rank == rank]
            assert told == ([slow] if slow != before else [])


@given(times)
def test_skew_is_that_of_the_whole_window(table):
    stragglers = Stragglers(len(table[0]), 1.5, 3)
    for row in table:
        stragglers.add(row)
    sums = [sum(column) for column in zip(*table, strict=True)]
    found = stragglers.read()
    assert found["step_skew"] == pytest.approx(max(sums) / statistics.median_low(sums))
    assert sums[found["slowest_rank"]] == max(sums)
    assert stragglers.read() == {}


def test_one_rank_has_no_skew():
    stragglers = Stragglers(1, 1.5, 1)
    assert stragglers.add([3.0]) == []
    assert stragglers.read() == {}


def test_of_two_ranks_the_faster_is_the_measure():
    assert Stragglers(2, 1.5, 1).add([1.0, 1.6]) == [Change(1, True, 1.6)]


def test_reports_stand_in_the_status_until_the_rank_recovers(tmp_path):
    run, said = RunDir(tmp_path), []
    write_json(run.heartbeat(3), {"host": "n2"})
    run.set_status(State.running)
    report_slow(run, [Change(3, True, 1.83)], 40, WatchdogConfig(), said.append)
    assert run.status().slow == [{"rank": 3, "host": "n2", "factor": 1.83, "step": 40}]
    assert "rank 3 on host n2 is slow" in said[0]
    assert "over 1.5x for 20 steps in a row" in said[0]
    run.set_status(State.running, step=50)
    assert run.status().slow
    report_slow(run, [Change(3, False, 1.1)], 60, WatchdogConfig(), said.append)
    assert run.status().slow == []
    assert said[1] == "rank 3 on host n2 is no longer slow"
    report_slow(run, [Change(3, True, 2.0)], 80, WatchdogConfig(), said.append)
    run.set_status(State.preparing, attempt=2)
    assert run.status().slow == []


class Hours:
    """A clock that goes on only when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


def test_own_time_is_that_of_loading_and_forward_passes():
    clock = Hours()
    own = OwnTime(torch.device("cpu"), clock)
    with own.loading():
        clock.pass_by(2.0)
    clock.pass_by(100.0)  # waits for the other ranks
    with own.forward():
        clock.pass_by(3.0)
    assert own.read() == 5.0
    assert own.read() == 0.0


def test_own_time_by_layer_leaves_out_what_comes_between_layers():
    clock = Hours()

    class Pause(nn.Module):
        def __init__(self, seconds: float) -> None:
            super().__init__()
            self.seconds = seconds

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            clock.pass_by(self.seconds)
            return x

    model = nn.Sequential(Pause(100.0), Pause(2.0), Pause(100.0), Pause(3.0))
    own = OwnTime(torch.device("cpu"), clock)
    own.watch([model[1], model[3]])
    with own.forward():
        model(torch.zeros(1))
    assert own.read() == 5.0
    model(torch.zeros(1))  # as gradient checkpointing does in the backward pass
    assert own.read() == 0.0
