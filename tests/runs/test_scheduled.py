"""What is said of runs whose jobs Slurm knows, has forgotten, or cannot be asked about."""

from __future__ import annotations

import os
import stat

import pytest

from launcher.core.errors import StorageError
from launcher.core.files import write_json
from launcher.core.rundir import RunDir, State, Status
from launcher.launch.queue import queue_job
from launcher.launch.slurm.backend import SlurmBackend
from launcher.launch.slurm.text import described
from launcher.launch.spec import open_file
from launcher.runs import scheduled, start, status

RUNNING = Status(State.running, attempt=1, step=5, host="n1", pid=1, time=1.0)
QUEUED = Status(State.queued, attempt=1, host="login", pid=1, time=1.0)


@pytest.mark.parametrize(
    ("before", "job", "state", "words"),
    [
        (QUEUED, described("7", "PENDING", "Priority"), State.queued, "job 7 waits: Priority"),
        (RUNNING, described("7", "PENDING", "BeginTime"), State.queued, "BeginTime"),
        (QUEUED, described("7", "RUNNING"), State.preparing, "job 7 starts"),
        (RUNNING, described("7", "RUNNING"), State.running, ""),
        (QUEUED, described("7", "COMPLETING"), State.queued, ""),
        (RUNNING, described("7", "NEWSTATE"), State.unknown, "running when last heard of"),
        (RUNNING, described("7", "CANCELLED"), State.cancelled, "cancelled in Slurm"),
        (
            QUEUED,
            described("7", "CANCELLED", "DependencyNeverSatisfied"),
            State.failed,
            "prepare.log",
        ),
        (RUNNING, described("7", "TIMEOUT"), State.failed, "launch.grace_s"),
        (RUNNING, described("7", "NODE_FAIL"), State.failed, "lost a node"),
        (RUNNING, described("7", "OUT_OF_MEMORY"), State.failed, "memory"),
        (RUNNING, described("7", "COMPLETED"), State.failed, "COMPLETED"),
        (RUNNING, None, State.failed, "does not know job 7"),
    ],
)
def test_judgement(before, job, state, words):
    found = scheduled.judged("Slurm", before, "7", job)
    assert found.state is state
    assert words in found.reason
    assert (found.exit_code is None) == (state not in (State.failed, State.cancelled))


@pytest.fixture
def squeue(tmp_path, monkeypatch):
    """A folder on the PATH whose squeue counts its calls; sacct knows nothing."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def script(name: str, text: str) -> None:
        path = folder / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)

    script("squeue", f'echo "$@" >> "{folder}/calls"; echo "1|RUNNING|None"; echo "2|PENDING|x"')
    script("sacct", "echo Slurm accounting storage is disabled >&2; exit 1")
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return folder / "calls"


def make_run(root, number: int, state: State) -> None:
    run = RunDir(root / f"r{number}")
    write_json(run.attempt(1) / "job.json", {"backend": "slurm", "job": str(number)})
    run.set_status(state, attempt=1)


def test_one_question_for_all_live_jobs(tmp_path, squeue):
    root = tmp_path / "runs"
    for number, state in enumerate((State.succeeded, State.running, State.queued, State.running)):
        make_run(root, number, state)
    found = {row.name: row.status.state for row in status.listing(root)}
    assert found == {
        "r0": State.succeeded,
        "r1": State.running,
        "r2": State.queued,
        "r3": State.failed,
    }
    assert len(squeue.read_text().splitlines()) == 1


def test_ended_runs_ask_nobody(tmp_path, squeue):
    make_run(tmp_path / "runs", 1, State.failed)
    status.listing(tmp_path / "runs")
    assert not squeue.exists()


def test_a_failure_counts_once_the_job_has_said_so(tmp_path, squeue):
    for number in (1, 2, 3):
        make_run(tmp_path / "runs", number, State.failed)
        open_file(RunDir(tmp_path / "runs" / f"r{number}"), 1).touch()
    found = {row.name: row.status for row in status.listing(tmp_path / "runs")}
    states = {name: row.state for name, row in found.items()}
    assert states == {"r1": State.running, "r2": State.queued, "r3": State.failed}
    assert "job 1 has not ended yet" in found["r1"].reason


def test_trials_of_an_array_share_the_number_of_its_job(tmp_path):
    run = RunDir(tmp_path / "runs" / "r")
    raw = {"backend": "slurm", "array": [str(tmp_path), 4]}
    write_json(run.attempt(1) / "job.json", raw)
    assert queue_job(run, 1) is None
    write_json(tmp_path / "job.json", {"job": "12"})
    assert queue_job(run, 1) == "12_4"


def test_without_slurm_the_state_is_unknown(tmp_path, monkeypatch, capsys):
    make_run(tmp_path / "runs", 1, State.running)
    monkeypatch.setenv("PATH", str(tmp_path))
    (row,) = status.listing(tmp_path / "runs")
    assert row.status.state is State.unknown
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("logs", "state", "said"),
    [
        (["slurm-0.log"], State.cancelled, "job 12_1 never began"),
        (["slurm-0.log", "slurm-1.log"], State.failed, "lost: Slurm does not know job 12_1"),
        ([], State.failed, "its nodes may not see"),
    ],
)
def test_a_waiting_task_that_was_cancelled_and_forgotten(tmp_path, logs, state, said):
    run, array = RunDir(tmp_path / "runs" / "r"), tmp_path / "array"
    write_json(run.attempt(1) / "job.json", {"backend": "slurm", "array": [str(array), 1]})
    write_json(array / "job.json", {"job": "12"})
    for name in logs:
        (array / name).touch()
    queued = run.set_status(State.queued, attempt=1)
    found = scheduled.settle(SlurmBackend(), run.path, queued, "12_1", None)
    assert found.state is state
    assert said in found.reason


def test_a_run_of_a_queue_that_is_not_installed_here_is_not_judged(tmp_path, capsys):
    run = RunDir(tmp_path / "runs" / "r")
    write_json(run.attempt(1) / "job.json", {"backend": "elsewhere", "job": "7"})
    run.set_status(State.queued, attempt=1)
    (row,) = status.listing(tmp_path / "runs")
    assert row.status.state is State.unknown
    assert "launch=elsewhere is not installed here" in row.status.reason
    with pytest.raises(StorageError, match="launch=elsewhere, which is not installed here"):
        start.begin(run)
    run.set_status(State.succeeded, exit_code=0)
    (row,) = status.listing(tmp_path / "runs")
    assert row.status.state is State.succeeded
