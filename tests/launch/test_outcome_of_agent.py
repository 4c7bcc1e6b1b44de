"""The rank that brought the others down, from the log of torch's agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.core.errors import ExitCode
from launcher.core.rundir import RunDir, State
from launcher.launch import outcome
from launcher.launch.outcome import Death, first, of_agent
from support.plans import launch_plan

#: As torch 2.13 writes it, for two starts of the ranks.
TWICE = """
E1122 22:04:09 4839 api.py:1002] failed (exitcode: -9) local_rank: 0 (pid: 4861) of binary: python
E1122 22:05:39 4839 api.py:1002] failed (exitcode: 75) local_rank: 0 (pid: 5438) of binary: python
Root Cause (first observed failure):
[0]:
  time      : 2026-11-22_22:05:39
  host      : node2
  rank      : 1 (local_rank: 0)
  exitcode  : 75 (pid: 5438)
"""


def test_only_the_last_start_of_the_ranks_counts():
    assert of_agent(TWICE) == Death(rank=1, code=75)


#: The order of such a list is that of the ranks: an abort is what a lost peer leads to.
ABORTED = """
[0]:
  rank      : 0 (local_rank: 0)
  exitcode  : -6 (pid: 41)
[1]:
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 42)
"""


@pytest.mark.parametrize(("code", "rank"), [(-9, 1), (-11, 1), (-6, 0), (-15, 0), (1, 0)])
def test_an_abort_is_the_echo_of_another_signal(code: int, rank: int):
    found = of_agent(ABORTED.format(code=code))
    assert found == Death(rank, code if rank else -6)
    assert first([Death(0, -6), Death(1, code)]) == found


def test_silent_agent():
    assert of_agent("RendezvousTimeoutError") is None


def test_rank_killed_by_a_signal_comes_before_echoes():
    assert first([Death(0, 1), Death(3, -11), Death(2, -15)]) == Death(3, -11)
    assert first([Death(0, 1), Death(2, -15)]) == Death(0, 1)
    assert first([]) is None


#: The last words of a store of torch 2.13 whose port is another's.
TAKEN = (
    "torch.distributed.DistNetworkError: The server socket has failed to listen on any local"
    " network address. port: 22071, useIpv6: false, code: -98, name: EADDRINUSE, message: address"
    " already in use"
)


@pytest.mark.parametrize("death", [None, Death(0, 1)])
@pytest.mark.parametrize("log", ["agent.log", "node-0.log"])
def test_a_port_that_is_taken_is_the_cause(tmp_path: Path, log: str, death: Death | None):
    run = RunDir(tmp_path)
    plan = launch_plan(run, backend="torchrun")
    run.set_status(State.preparing, attempt=1)
    assert outcome.of_death(run, plan, death, False, False) == ExitCode.internal
    (run.attempt(1) / log).write_text(f"Traceback\n{TAKEN}\n")
    run.set_status(State.preparing, attempt=1)
    assert outcome.of_death(run, plan, death, False, False) == ExitCode.hang
    assert "port: 22071" in run.status().reason
    assert f"launcher resume {run}" in run.status().reason
    # A rank that the kernel has killed is the cause whatever else stands there.
    run.set_status(State.preparing, attempt=1)
    assert outcome.of_death(run, plan, Death(0, -9), False, False) == ExitCode.internal


@pytest.mark.parametrize(("code", "lost"), [(-9, True), (-11, False), (1, False)])
def test_who_is_killed_is_lost_and_who_crashes_is_not(tmp_path: Path, code: int, lost: bool):
    run = RunDir(tmp_path)
    plan = launch_plan(run, backend="local")
    run.set_status(State.preparing, attempt=1)
    outcome.of_death(run, plan, Death(0, code), False, False)
    assert (run.status().state, run.status().lost) == (State.failed, lost)
    run.set_status(State.preparing, attempt=1)
    log = tmp_path / "prepare.log"
    log.write_text("")
    outcome.of_preparation(run, code, log, False, False)
    assert (run.status().state, run.status().lost) == (State.failed, lost)


def test_an_agent_that_is_killed_says_nothing_and_is_the_cause(tmp_path: Path):
    run = RunDir(tmp_path)
    plan = launch_plan(run, backend="local", processes=2, nodes=())
    run.set_status(State.preparing, attempt=1)
    plan.log.write_text("")
    outcome.of_ranks(run, plan, -9, stopped=False, ended_now=False)
    assert run.status().lost
    assert "torch's agent was killed by SIGKILL" in run.status().reason
