"""`launch=slurm` on a real cluster, with stand-ins for the ranks: how runs end, and go on.

What every queue does is in `test_queues.py`.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.config import create
from launcher.config.compose import compose
from launcher.core.errors import ConfigError, ExitCode, StorageError
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir, State
from launcher.launch.slurm import commands
from launcher.launch.slurm.backend import SlurmBackend
from launcher.launch.spec import AttemptState
from launcher.runs import start, status
from launcher.runs.cancel import cancel
from support.slurm import Cluster, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

HERE = Path(__file__).resolve().parents[1]
WORDS = (
    *("model=tiny", "data.train=builtin:quickstart-text", "batch.sequences=8"),
    *("launch=slurm", "launch.nodes=2", "launch.processes=2", "train.threads=1"),
    *("cluster.gpus_per_node=0", "cluster.sbatch=[--exclusive]"),
)
PATHS = os.pathsep.join([str(HERE), str(HERE.parents[1])])


@pytest.fixture
def cluster(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", PATHS)
    yield cluster
    cluster.run("scancel", f"--user={os.environ.get('USER', 'root')}", check=False)
    wait_for(lambda: not cluster.run("squeue", "-h", check=False), "the end of all jobs")


@dataclasses.dataclass
class Submitted:
    """A run of stand-ins in Slurm's hands."""

    run: RunDir
    job: str
    cluster: Cluster

    def await_step(self, step: int, attempt: int = 1) -> None:
        """Wait until all ranks of an attempt are at `step` or beyond."""

        def reached() -> bool:
            beats = [read_json(self.run.heartbeat(rank), {"step": 0}) for rank in range(4)]
            now = self.run.status()
            return now.attempt >= attempt and all(beat["step"] >= step for beat in beats)

        wait_for(reached, f"step {step} of attempt {attempt}")

    def end(self) -> State:
        """The state once the job is gone."""
        wait_for(lambda: self.cluster.word(self.job) in ("", *_ENDED), "the end of the job")
        return status.observed_run(self.run).state

    def steps(self) -> list[int]:
        """Steps that rank 0 has made, over all attempts."""
        return [json.loads(line)["step"] for line in self.run.metrics.read_text().splitlines()]


_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")


@pytest.fixture
def submit(cluster: Cluster, weird_tmp_path: Path) -> Callable[..., Submitted]:
    """Submit a run whose stand-in ranks follow a script; its folder has spaces and quotes."""

    def submit(*words: str, run: RunDir | None = None, **script) -> Submitted:
        if run is None:
            run = create.create([*WORDS, f"run.root={weird_tmp_path}", "run.name=r", *words])
            write_json(run.path / "stand_in.json", script)
        attempt = start.begin(run)
        plan = SlurmBackend().plan(stand_in(start.spec(run, attempt, compose.load(run.config))))
        return Submitted(run, SlurmBackend().submit(plan, attached=False), cluster)

    return submit


def stand_in(spec):
    return dataclasses.replace(spec, module="slurm_rank", prepare_module="stand_in_prepare")


def test_run_on_two_nodes_succeeds(submit):
    made = submit(steps=3)
    assert made.end() is State.succeeded
    assert made.run.status().attempt == 1
    hosts = {read_json(made.run.heartbeat(rank))["host"] for rank in range(4)}
    assert len(hosts) == 2
    assert all(made.run.log(1, rank).is_file() for rank in range(4))
    assert (made.run.attempt(1) / "slurm.log").is_file()
    assert SlurmBackend().status(made.run, 1) is AttemptState.gone


def test_a_site_that_exports_nothing_keeps_the_variables_of_the_script(submit, monkeypatch):
    monkeypatch.setenv("SBATCH_EXPORT", "NONE")
    # Without it the stand-ins are not found.
    made = submit(f"cluster.setup=['export PYTHONPATH={PATHS}']", steps=1)
    assert made.end() is State.succeeded


def test_variables_for_slurms_commands_change_neither_the_job_nor_what_is_read(
    submit, cluster, monkeypatch
):
    options = {"MEM_PER_NODE": "1T", "NO_REQUEUE": "1", "ARRAY_INX": "0-3", "WAIT": "1"}
    hostile = {f"SBATCH_{name}": value for name, value in options.items()}
    hostile |= {"SQUEUE_FORMAT": "%j", "SQUEUE_STATES": "CG", "SLURM_TIME_FORMAT": "relative"}
    hostile |= {"SCANCEL_STATE": "SUSPENDED", "SCANCEL_INTERACTIVE": "1", "SLURM_CLUSTERS": "none"}
    with monkeypatch.context() as user:
        for name, value in hostile.items():
            user.setenv(name, value)
        made = submit("cluster.memory=200M", steps=500, step_s=0.1)
        made.await_step(2)
        assert SlurmBackend().status(made.run, 1) is AttemptState.running
        shown = commands.fields(made.job)
        assert (shown["MinMemoryNode"], shown["Requeue"]) == ("200M", "1")
        SlurmBackend().cancel(made.run, 1, now=True)
        wait_for(lambda: SlurmBackend().status(made.run, 1) is AttemptState.gone, "the end")


def test_torchrun_as_agent_is_stopped_and_goes_on(submit, cluster):
    made = submit("launch.agent=torchrun", steps=40, step_s=0.2)
    made.await_step(3)
    cluster.run("scancel", "--signal=USR1", made.job)
    wait_for(lambda: made.run.status().reason.startswith("requeued: "), "the requeue")
    assert made.end() is State.succeeded
    assert made.steps() == list(range(1, 41))


def test_time_limit_signal_saves_and_requeues(submit, cluster):
    made = submit(steps=60, step_s=0.1)
    made.await_step(3)
    # What --signal=USR1@grace does before the limit, without the wait for it.
    cluster.run("scancel", "--signal=USR1", made.job)
    wait_for(lambda: made.run.status().state is State.queued, "the requeue")
    assert "requeued" in made.run.status().reason
    assert made.end() is State.succeeded
    assert made.steps() == list(range(1, 61))


def test_preempted_by_a_higher_partition(submit, cluster):
    made = submit(steps=60, step_s=0.1)
    made.await_step(3)
    cluster.run("sbatch", "-p", "high", "--exclusive", "-N2", "-o", "/dev/null", "--wrap=sleep 1")
    assert made.end() is State.succeeded
    assert made.steps() == list(range(1, 61))
    assert made.run.attempts() == [1, 2]


def test_killed_rank_is_named_and_the_job_requeued(submit):
    made = submit(steps=20, die={"rank": 3, "step": 3, "signal": int(signal.SIGKILL)})
    wait_for(lambda: made.run.status().reason.startswith("requeued: "), "the requeue")
    assert "rank 3 was killed by SIGKILL" in made.run.status().reason
    assert made.end() is State.succeeded
    assert made.run.attempts() == [1, 2]


def test_requeues_have_an_end(submit):
    made = submit(
        "launch.max_requeues=0",
        steps=20,
        step_s=0.1,
        die={"rank": 1, "step": 3, "signal": int(signal.SIGKILL)},
    )
    assert made.end() is State.failed
    assert "max_requeues is used up" in made.run.status().reason


def test_failed_preparation_job_settles_the_run(submit):
    made = submit("launch.prepare_job=true", prepare_code=3)
    assert made.end() is State.failed
    found = made.run.status()
    assert found.exit_code == ExitCode.data
    assert "train.jsonl:3: not JSON" in found.reason


def test_preparation_job_comes_before_the_run(submit):
    made = submit("launch.prepare_job=true", steps=3)
    assert made.end() is State.succeeded
    assert "preparing data" in (made.run.attempt(1) / "prepare.log").read_text()


def test_a_job_that_runs_on_can_be_cancelled_though_a_rank_has_failed(submit, cluster):
    made = submit(steps=1000, step_s=0.1)
    made.await_step(3)
    # What a rank writes when it loses its peer: Slurm may need minutes to miss the peer's node.
    made.run.set_status(State.failed, reason="connection lost", exit_code=1)
    seen = status.observed_run(made.run)
    assert seen.state is State.running
    assert seen.reason == f"connection lost; job {made.job} has not ended yet"
    with pytest.raises(StorageError, match="another process works on"):
        start.begin(made.run)
    assert cancel(made.run).state is State.cancelled
    assert made.end() is State.cancelled


def test_preempted_where_slurm_cancels_is_requeued_by_the_job(submit, cluster):
    cluster.require_own("be configured")
    made = submit(steps=60, step_s=0.1)
    made.await_step(3)
    cluster.run("scontrol", "update", "partition=batch", "PreemptMode=CANCEL")
    try:
        command = ("sbatch", "-p", "high", "--exclusive", "-N2", "-o", "/dev/null")
        cluster.run(*command, "--wrap=sleep 1")
        wait_for(lambda: made.run.status().state is State.queued, "the requeue")
    finally:
        cluster.run("scontrol", "update", "partition=batch", "PreemptMode=REQUEUE")
    assert made.end() is State.succeeded
    assert made.run.attempts() == [1, 2]


def test_lost_controller_is_said_and_nothing_else(submit, cluster, capfd):
    cluster.require_own("lose its controller")
    made = submit(steps=100, step_s=0.1)
    made.await_step(2)
    cluster.stop("slurmctld")
    try:
        seen = status.observed_run(made.run)
        assert seen.state is State.unknown
        assert "running when last heard of" in seen.reason
        assert len(capfd.readouterr().err.splitlines()) == 1
        assert SlurmBackend().status(made.run, 1) is AttemptState.unknown
        (row,) = status.listing(made.run.path.parent)
        assert row.status.state is State.unknown
    finally:
        cluster.again("slurmctld")
    assert made.end() is State.succeeded


def test_lost_node_is_replaced_without_a_hand(submit, cluster):
    cluster.require_own("lose a node")
    # Slurm takes a while to miss a node, and its ranks live on meanwhile.
    made = submit(steps=60, step_s=0.6)
    made.await_step(3)
    cluster.kill("n2")
    wait_for(lambda: cluster.word(made.job) in ("PENDING", "COMPLETING"), "the end of the job")
    cluster.again("n2")
    assert made.end() is State.succeeded
    assert made.steps()[-1] == 60
    assert made.run.attempts() == [1, 2]


def test_this_version_knows_how_ended_jobs_are_asked_for(cluster):
    command = (*commands.ACCOUNTED, "--jobs", "1")
    if cluster.is_own:  # without accounting, which it says where it understands the question
        with pytest.raises(commands.SlurmRefusedError, match=commands.NO_ACCOUNTING):
            commands.run(*command)
    else:
        commands.run(*command)


def test_what_sbatch_refuses_is_quoted(submit):
    with pytest.raises(ConfigError, match="nosuchoption") as caught:
        submit("cluster.sbatch=[--nosuchoption]")
    assert "HINT" in str(caught.value)


def test_command_line_follows_submits_and_refuses(cluster, tmp_path):
    command = [sys.executable, "-m", "launcher.cli"]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*command, *words], cwd=tmp_path, capture_output=True, text=True)

    done = run("submit", *WORDS, "run.name=big", "launch.nodes=9", "batch.sequences=36")
    assert done.returncode == ExitCode.usage
    assert "launch.nodes" in done.stderr
    done = run("submit", *WORDS, "run.name=p", "cluster.partition=bacth")
    assert "did you mean 'batch'" in done.stderr
    assert not (tmp_path / "runs").exists()
    done = run("train", "--dry-run", *WORDS, "run.name=dry")
    assert done.returncode == 0
    assert "#SBATCH --nodes=2" in done.stdout
    assert list(tmp_path.iterdir()) == []
