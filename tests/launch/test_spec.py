"""The pure half of launching: spec -> plan, and how an ended attempt is judged."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from launcher import entry
from launcher.config.schema.launch import ClusterConfig, LaunchConfig
from launcher.config.schema.variants import LAUNCHERS
from launcher.core.errors import ExitCode
from launcher.core.rundir import RunDir, State
from launcher.launch import outcome
from launcher.launch.local import LocalBackend
from launcher.launch.queue import QueueBackend, has_queue, queues
from launcher.launch.spec import Backend, LaunchPlan, LaunchSpec

#: The interpreter, kept from the modules of the current folder.
PYTHON = entry.interpreter("/py")


def make_spec(run: Path, **changes) -> LaunchSpec:
    known = {"attempt": 1, "python": "/py", "cwd": run.parent, "processes": 1, "threads": 3}
    known |= {"nodes": 1, "options": LaunchConfig(), "cluster": ClusterConfig()}
    return LaunchSpec(run=run, **{**known, **changes})


def make_plan(run: Path, processes: int = 2) -> LaunchPlan:
    (run / "attempts" / "0001").mkdir(parents=True, exist_ok=True)
    return LocalBackend().plan(make_spec(run, processes=processes))


def test_one_rank_starts_without_an_agent(tmp_path):
    plan = LocalBackend().plan(make_spec(tmp_path, attempt=7))
    assert plan.command == (*PYTHON, "-m", "launcher.train", str(tmp_path), "--attempt", "7")
    assert plan.prepare == (*PYTHON, "-m", "launcher.data.prepare", str(tmp_path))
    assert plan.environment["OMP_NUM_THREADS"] == "3"
    assert plan.environment["OMP_WAIT_POLICY"] == "PASSIVE"
    assert plan.log == tmp_path / "attempts/0007/agent.log"


def test_several_ranks_start_under_the_agent_without_restarts(tmp_path):
    command = LocalBackend().plan(make_spec(tmp_path, processes=4)).command
    assert command[:5] == (*PYTHON, "-m", "torch.distributed.run")
    # A rank that the agent would start by `-m` itself would look in the current folder first.
    at = command.index("--no-python")
    agent = command[5:at]
    assert command[at + 1 : at + 6] == (*PYTHON, "-m", "launcher.train")
    assert "--standalone" in agent
    assert agent[agent.index("--nproc-per-node") + 1] == "4"
    assert agent[agent.index("--max-restarts") + 1] == "0"
    assert command[-3:] == (str(tmp_path), "--attempt", "1")


def test_planning_has_no_effect(weird_tmp_path):
    before = dict(os.environ)
    spec = make_spec(weird_tmp_path, environment={"A": "b"})
    plans = [LocalBackend().plan(spec) for _ in range(2)]
    assert plans[0] == plans[1]
    assert plans[0].environment["A"] == "b"
    assert list(weird_tmp_path.iterdir()) == []
    assert dict(os.environ) == before


def test_plan_survives_json(weird_tmp_path):
    plan = LocalBackend().plan(make_spec(weird_tmp_path, processes=2))
    assert LaunchPlan.from_json(json.loads(json.dumps(plan.to_json()))) == plan


def test_every_back_end_can_be_loaded_and_has_the_methods():
    def methods(protocol: type) -> list[str]:
        return [
            name for name, member in vars(protocol).items() if callable(member) and name[0] != "_"
        ]

    assert {"submit_many", "observe", "recover", "cancel_many"} <= {*methods(QueueBackend)}
    for name in LAUNCHERS:
        backend = LAUNCHERS.load(name)()
        assert all(callable(getattr(backend, method)) for method in methods(Backend))
        answers = [callable(getattr(backend, method, None)) for method in methods(QueueBackend)]
        assert has_queue(name) is all(answers), name
    assert not has_queue(None)
    assert not has_queue("nowhere")
    assert queues() == ["slurm"]


AGENT_LOG = """\
W1122 multiprocessing/api.py:1028] Sending process 20 closing signal SIGTERM
{extra}E1122 api.py:1002] failed (exitcode: {first}) local_rank: {rank} (pid: 2{rank})
Failures:
[1]:
  time      : 2030-01-01_00:00:00
  rank      : 0 (local_rank: 0)
  exitcode  : {code0} (pid: 20)
------------------------------------------------------
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : {code1} (pid: 21)
"""


def died(run: Path, code0: int, code1: int, *, first: int | None = None, extra: str = ""):
    plan = make_plan(run)
    rank = 1 if first is None else first
    values = {"rank": rank, "first": (code0, code1)[rank], "code0": code0, "code1": code1}
    plan.log.write_text(AGENT_LOG.format(**values, extra=extra))
    return plan


def test_killed_rank_is_the_cause_even_if_another_failed_in_the_same_instant(tmp_path):
    plan = died(tmp_path, 1, -9, first=0)
    assert outcome.cause(plan, 1) == outcome.Death(rank=1, code=-9)


def test_rank_that_the_agent_killed_is_not_the_cause(tmp_path):
    killed = "W1122 api.py:1051] Unable to shutdown process 20 via 15, forcefully exiting via 9\n"
    plan = died(tmp_path, -9, 3, extra=killed)
    assert outcome.cause(plan, 1) == outcome.Death(rank=1, code=3)


def test_agent_that_says_nothing_names_nobody(tmp_path):
    plan = make_plan(tmp_path)
    plan.log.write_text("")
    assert outcome.cause(plan, 1) is None
    code = outcome.of_ranks(RunDir(tmp_path), plan, 1, stopped=False, ended_now=False)
    assert code == ExitCode.internal
    assert RunDir(tmp_path).status().state is State.failed


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ((State.succeeded, 0), (State.succeeded, 0)),
        ((State.failed, 5), (State.failed, 5)),
        # What rank 0 says after losing a peer is an echo of the peer's end.
        ((State.failed, 1), (State.failed, 3)),
        ((State.running, None), (State.failed, 3)),
    ],
)
def test_what_rank_0_wrote_counts_unless_it_is_an_echo(tmp_path, written, expected):
    plan, run = died(tmp_path, 1, 3), RunDir(tmp_path)
    run.set_status(written[0], attempt=1, exit_code=written[1])
    code = outcome.of_ranks(run, plan, 1, stopped=False, ended_now=False)
    assert (run.status().state, code) == expected
    assert run.status().exit_code == code


def test_state_of_an_earlier_attempt_does_not_count(tmp_path):
    plan, run = died(tmp_path, -15, 3), RunDir(tmp_path)
    run.set_status(State.succeeded, attempt=0, exit_code=0)
    assert outcome.of_ranks(run, plan, 1, stopped=False, ended_now=False) == ExitCode.data


@pytest.mark.parametrize("code", [-15, 75])
def test_ranks_stopped_before_training_are_preempted(tmp_path, code):
    run = RunDir(tmp_path)
    run.set_status(State.preparing, attempt=1)
    plan = died(tmp_path, -15, code)
    assert outcome.of_ranks(run, plan, 1, stopped=True, ended_now=False) == ExitCode.preempted
    assert run.status().state is State.preempted


def test_rank_that_fails_while_it_stops_has_failed(tmp_path):
    run = RunDir(tmp_path)
    run.set_status(State.running, attempt=1)
    plan = died(tmp_path, -15, 7)
    assert outcome.of_ranks(run, plan, 1, stopped=True, ended_now=False) == ExitCode.storage
    assert run.status().state is State.failed
