"""Beginning, resuming and cancelling without processes of a run."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.config import create
from launcher.config.compose import compose
from launcher.core.errors import ConfigError, ExitCode, StorageError
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir, State
from launcher.launch.local import LocalBackend
from launcher.launch.spec import AttemptState
from launcher.runs import start
from launcher.runs.cancel import cancel
from launcher.runs.follow import follow
from launcher.runs.status import listing

WORDS = ("model=tiny", "data.train=builtin:quickstart-text", "batch.sequences=8")


@pytest.fixture
def run(tmp_path) -> RunDir:
    return create.create([*WORDS, f"run.root={tmp_path}", "run.name=r"])


def write_status(run, **changes):
    raw = read_json(run.status_file)
    write_json(run.status_file, {**raw, **changes})


def test_attempts_are_numbered_from_one(run):
    assert start.begin(run) == 1
    assert run.status().attempt == 1
    run.set_status(State.preempted, exit_code=75)
    assert start.begin(run) == 2
    assert run.attempts() == [1, 2]
    status = run.status()
    assert (status.state, status.exit_code, status.reason) == (State.preparing, None, "")


@pytest.fixture
def other():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_run_in_the_hands_of_another_process_is_refused(run, other):
    start.begin(run)
    write_status(run, pid=other.pid, time=time.time())
    with pytest.raises(StorageError, match="another process works on this run"):
        start.begin(run)
    assert run.attempts() == [1]


def test_locked_run_is_refused(run):
    code = (
        f"from launcher.core.rundir import RunDir\nwith RunDir({str(run)!r}).lock():\n    input()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE)
    try:
        lock = run.path / ".lock"
        end = time.monotonic() + 30
        while not (lock.exists() and lock.read_text()) and time.monotonic() < end:
            time.sleep(0.01)
        with pytest.raises(StorageError, match=f"pid {holder.pid}"):
            start.begin(run)
    finally:
        holder.communicate(b"\n")
    assert start.begin(run) == 1


def test_run_alive_on_another_host_is_refused_until_declared_lost(run):
    start.begin(run)
    write_status(run, state="running", host="elsewhere")
    with pytest.raises(StorageError, match="--lost"):
        start.begin(run)
    assert cancel(run, lost=True).state is State.cancelled
    assert start.begin(run) == 2


def test_lost_run_of_this_host_can_be_begun_again(run):
    start.begin(run)
    write_status(run, state="running", time=time.time() - 9999)
    assert start.begin(run) == 2


def test_finished_run_is_not_resumed(run):
    run.set_status(State.succeeded, exit_code=0)
    with pytest.raises(ConfigError, match="has finished"):
        start.resumable(run)
    for state in (State.preempted, State.failed, State.cancelled):
        run.set_status(state, exit_code=1)
        assert start.resumable(run) is run


def test_a_change_is_made_once_nobody_else_works_on_the_run(run, other):
    made = []
    assert start.begin(run, lambda: made.append(run.attempts())) == 1
    assert made == [[]]
    write_status(run, pid=other.pid, time=time.time())
    with pytest.raises(StorageError):
        start.begin(run, lambda: made.append(run.attempts()))
    assert len(made) == 1


def test_spec_follows_the_frozen_config(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.chdir(home)
    words = [*WORDS, "run.root=../runs", "run.name=r", "launch.processes=2", "train.threads=3"]
    run = create.create(words)
    monkeypatch.chdir(tmp_path)
    spec = start.spec(run, 4, compose.load(run.config))
    assert (spec.processes, spec.threads, spec.attempt) == (2, 3, 4)
    assert spec.cwd == home
    assert spec.run == (tmp_path / "runs" / "r").resolve()
    assert spec.module == "launcher.train"
    home.rmdir()
    assert start.working_folder(run) == Path.cwd()


def test_cpus_are_divided_among_the_ranks(run):
    write_json(run.plan, {**read_json(run.plan), "world_size": 10_000})
    spec = start.spec(run, 1, compose.load(run.config))
    assert (spec.processes, spec.threads) == (10_000, 1)


def test_failure_to_launch_is_written_to_the_run(run):
    attempt = start.begin(run)
    run.config.chmod(0o644)
    run.config.write_text("launch: {name: nowhere}\n")
    with pytest.raises(ConfigError):
        start.submit(run, attempt, attached=True)
    status = run.status()
    assert (status.state, status.exit_code) == (State.failed, ExitCode.usage)


class Gone(LocalBackend):
    """A back end whose job has ended."""

    def status(self, run: RunDir, attempt: int) -> AttemptState:
        return AttemptState.gone


@pytest.mark.parametrize(
    ("state", "written", "code"),
    [
        (State.succeeded, 0, 0),
        (State.succeeded, None, 0),
        (State.cancelled, None, ExitCode.interrupted),
        (State.preempted, None, ExitCode.preempted),
        (State.failed, None, ExitCode.internal),
        (State.failed, 0, ExitCode.internal),
        (State.failed, 5, 5),
    ],
)
def test_only_a_run_that_succeeded_ends_with_0(run, state, written, code):
    attempt = start.begin(run)
    run.set_status(state, exit_code=written)
    assert follow(run, attempt, Gone()) == code


def test_ended_run_is_not_cancelled(run):
    run.set_status(State.succeeded, exit_code=0)
    with pytest.raises(ConfigError, match="succeeded already"):
        cancel(run)
    assert run.status().state is State.succeeded


def test_preempted_run_can_be_cancelled(run):
    run.set_status(State.preempted, exit_code=75, attempt=1)
    assert cancel(run).state is State.cancelled
    assert run.status().exit_code == ExitCode.interrupted


def test_ranks_started_directly_are_cancelled_by_their_heartbeats(run, other):
    run.set_status(State.running, attempt=1)
    write_status(run, pid=other.pid)
    beat = {"rank": 0, "host": socket.gethostname(), "pid": other.pid, "time": time.time()}
    write_json(run.heartbeat(0), beat)
    # A pid that is no longer that of the rank must not be touched.
    write_json(run.heartbeat(1), {**beat, "rank": 1, "pid": os.getpid(), "time": 1.0})
    assert cancel(run).state is State.cancelled
    assert other.wait(timeout=30) == -signal.SIGTERM


@pytest.mark.parametrize("state", [State.failed, State.cancelled])
def test_a_run_that_took_no_step_leaves_its_name_to_the_next(run, state):
    for number in (1, 2):
        run.set_status(state, exit_code=3, reason="no data")
        start.require_free(run)
        aside = start.release_name(run)
        assert aside == run.path.parent / ".failed" / f"r.{number}"
        assert RunDir(aside).status().reason == "no data"
        create.create([*WORDS, f"run.root={run.path.parent}", "run.name=r"])
    assert [row.name for row in listing(run.path.parent)] == ["r"]


@pytest.mark.parametrize(
    "begun", ["preparing", "succeeded", "preempted", "checkpoint", "step", "metrics"]
)
def test_any_other_run_keeps_its_name(run, begun):
    state = State(begun) if begun in {s.value for s in State} else State.failed
    run.set_status(state)
    if begun == "checkpoint":
        (run.checkpoints / "step-1").mkdir(parents=True)
    elif begun == "step":
        write_json(run.heartbeat(0), {"step": 1})
    elif begun == "metrics":
        run.metrics.write_text('{"kind": "train", "step": 1}\n')
    assert start.release_name(run) is None
    with pytest.raises(ConfigError, match="there is a run of this name"):
        start.require_free(run)
    with pytest.raises(ConfigError, match="there is a run of this name"):
        create.create([*WORDS, f"run.root={run.path.parent}", "run.name=r"])


def test_a_name_that_nobody_has_is_free(tmp_path):
    assert start.release_name(RunDir(tmp_path / "r")) is None
    start.require_free(RunDir(tmp_path / "r"))


def test_a_name_that_a_sweep_or_another_folder_has_is_told_as_such(tmp_path):
    (tmp_path / "r").mkdir()
    with pytest.raises(ConfigError, match="a folder that is no run of this name already"):
        start.require_free(RunDir(tmp_path / "r"))
    (tmp_path / "r" / "sweep.json").write_text("{}")
    with pytest.raises(ConfigError, match="there is a sweep of this name already") as told:
        start.require_free(RunDir(tmp_path / "r"))
    assert told.value.problems[0].hint.startswith("`launcher sweep resume r --root ")


@pytest.mark.parametrize("verb", [["plan"], ["train", "--dry-run"], ["submit", "--dry-run"]])
def test_a_name_that_is_taken_is_refused_without_a_start_too(run, verb, capsys):
    words = [*WORDS, f"run.root={run.path.parent}", "run.name=r"]
    assert main([*verb, *words]) == 2
    assert "run.name: there is a run of this name already" in capsys.readouterr().err
    run.set_status(State.failed, exit_code=3)
    assert main([*verb, *words]) == 0


STEP = {
    **{"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"},
    **{"SLURM_NODEID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"},
}
RANKS = {
    "srun": STEP,
    "mpirun": {
        f"OMPI_COMM_WORLD_{n}": "2" if "SIZE" in n else "1"
        for n in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    },
    "mpiexec": {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
    "torchrun": {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
}


@pytest.mark.parametrize("verb", ["train", "submit", "resume"])
@pytest.mark.parametrize("environ", RANKS.values(), ids=list(RANKS))
def test_one_of_several_tasks_starts_no_run(tmp_path, monkeypatch, capsys, verb, environ):
    monkeypatch.chdir(tmp_path)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    words = ["r"] if verb == "resume" else ["model=tiny", "data.train=builtin:quickstart-text"]
    assert main([verb, *words]) == ExitCode.usage
    said = capsys.readouterr().err
    assert "this process is rank 1 of 2" in said
    assert "-m launcher.train" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [["eval", "r"], ["export", "r"], ["compare", "r:base", "r"]])
def test_one_of_several_tasks_does_not_do_the_work_of_all(run, monkeypatch, capsys, words):
    monkeypatch.chdir(run.path.parent)
    monkeypatch.setattr(os, "execve", pytest.fail)
    for name, value in RANKS["mpirun"].items():
        monkeypatch.setenv(name, value)
    assert main([*words, *([] if words[0] == "compare" else ["--root", "."])]) == ExitCode.usage
    said = capsys.readouterr().err
    assert "this process is rank 1 of 2 (mpirun)" in said
    assert "HINT: start it once, without mpirun\n" in said


@pytest.mark.parametrize(
    "environ",
    [
        {
            **STEP,
            **{"SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_TASKS_PER_NODE": "1"},
            **{"SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
        },
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"},  # the batch script
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"},
    ],
    ids=["srun -n1", "sbatch", "a pod of one"],
)
def test_one_task_alone_may_start_a_run(monkeypatch, environ):
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    start.refuse_in_rank("run")
