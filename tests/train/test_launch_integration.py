"""The three ways to start ranks give one run; killed or stopped, it goes on as if never so."""

import signal

import pytest
from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import State
from support import project
from support.project import DEEPSPEED, LAUNCHER, TORCHRUN, Project

pytestmark = pytest.mark.slow

STEPS = 40
#: All that can go wrong on a resume: dropout, sharded state, accumulation, several epochs.
RECIPE = (
    "peft=lora",
    "peft.rank=4",
    "peft.dropout=0.2",
    "engine=zero2",
    "batch.sequences=4",
    "batch.micro=1",
    f"train.steps={STEPS}",
    "train.token_accuracy=true",
    "optim.lr=1e-3",
    "schedule.warmup=10",
    "checkpoint.every_steps=2",
    "checkpoint.keep_last=3",
    "launch.processes=2",
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    made = Project(tmp_path_factory.mktemp("launch"))
    made.write_data(project.conversations(150))
    return made


@pytest.fixture(scope="module")
def undisturbed(here):
    """The run that all others must equal; by `launcher train`, followed by all trackers."""
    words = here.words("undisturbed", *RECIPE, "track=wandb", "track.tensorboard.enabled=true")
    done = here.run((*LAUNCHER, "train"), *words)
    assert done.code == ExitCode.ok, done.output
    return here.folder_of("undisturbed")


def assert_same(run, undisturbed):
    assert run.status().state is State.succeeded
    assert list(project.losses(run)) == list(range(1, STEPS + 1))
    for name in ("loss", "token_accuracy"):
        assert project.losses(run, name) == project.losses(undisturbed, name)
    files = project.checkpoint_files(run)
    assert list(files) == [STEPS - 4, STEPS - 2, STEPS]
    assert files == project.checkpoint_files(undisturbed)


def test_launcher_train_accumulates_learns_and_is_tracked_by_rank_0_alone(undisturbed):
    plan = read_json(undisturbed.plan)
    assert (plan["world_size"], plan["accumulation"]) == (2, 2)
    losses = project.losses(undisturbed)
    assert losses[STEPS] < losses[1] - 0.1
    run_id = read_json(undisturbed.tracking)["wandb"]
    (followed,) = (undisturbed.path / "wandb").glob("offline-run-*")
    assert followed.name.endswith(f"-{run_id}")
    recorded = (followed / f"run-{run_id}.wandb").read_bytes()
    assert b"train/loss" in recorded
    assert b"undisturbed" in recorded


def test_token_accuracy_is_that_of_an_evaluation_of_the_same_records(here):
    words = (
        "train.epochs=1",
        "train.log_every_steps=100",
        "train.token_accuracy=true",
        "eval=default",
    )
    words += ("batch.sequences=10", "batch.micro=1", "data.packing=false", "optim.lr=1e-12")
    words += ("data.validation=data.jsonl", "data.gate=[]", "eval.base=true", "launch.processes=2")
    done = here.run((*LAUNCHER, "train"), *here.words("counted", *words))
    assert done.code == ExitCode.ok, done.output
    run = here.folder_of("counted")
    (counted,) = project.losses(run, "token_accuracy").values()
    base = read_json(run.eval / "base.json")["metrics"]["token_accuracy"]
    assert counted == pytest.approx(base, abs=1e-4)


@pytest.mark.parametrize("command", [TORCHRUN, DEEPSPEED], ids=["torchrun", "deepspeed"])
def test_direct_launch_gives_the_same_run(here, undisturbed, command):
    name = "by-" + ("torchrun" if command is TORCHRUN else "deepspeed")
    done = here.run(command, *here.words(name, *RECIPE))
    assert done.code == ExitCode.ok, done.output
    run = here.folder_of(name)
    assert f"step {STEPS}/{STEPS}" in done.output  # rank 0 speaks on the terminal too
    assert f"step {STEPS}/{STEPS}" in run.log(1, 0).read_text()
    assert run.log(1, 1).is_file()
    assert "run folder" not in run.log(1, 1).read_text()
    assert_same(run, undisturbed)


def test_killed_rank_fails_the_run_and_resume_is_bit_identical(here, undisturbed):
    words = here.words("killed", *RECIPE, "track=tensorboard")
    running = here.start((*LAUNCHER, "train"), *words)
    run = here.folder_of("killed")
    running.wait_until(lambda: 4 in project.checkpoint_files(run), "a checkpoint")
    pids = [project.rank_pid(run, rank) for rank in (0, 1)]
    project.kill_rank(run, 1, signal.SIGKILL)
    done = running.end()
    assert done.code == ExitCode.internal, done.output
    status = run.status()
    assert (status.state, status.exit_code) == (State.failed, ExitCode.internal)
    assert "rank 1 was killed by SIGKILL" in status.reason
    assert status.reason.splitlines()[0] in done.output
    assert not any(project.is_alive(pid) for pid in pids)
    assert max(project.checkpoint_files(run)) < STEPS

    done = here.run((*LAUNCHER, "resume"), "killed")
    assert done.code == ExitCode.ok, done.output
    assert "resuming from step" in done.output
    assert run.status().attempt == 2
    assert_same(run, undisturbed)
    for followed in (run, undisturbed):
        events = EventAccumulator(str(followed.path / "tensorboard")).Reload().Tensors("train/loss")
        losses = {event.step: make_ndarray(event.tensor_proto).item() for event in events}
        assert len(events) == STEPS
        assert losses == pytest.approx(project.losses(undisturbed), rel=1e-6)


def test_signal_to_one_rank_preempts_a_direct_launch(here, undisturbed):
    running = here.start(TORCHRUN, *here.words("stopped", *RECIPE))
    run = here.folder_of("stopped")
    running.wait_until(lambda: 2 in project.checkpoint_files(run), "a checkpoint")
    project.kill_rank(run, 1, signal.SIGUSR1)
    done = running.end()
    assert done.code != ExitCode.ok, done.output
    status = run.status()
    assert (status.state, status.exit_code) == (State.preempted, ExitCode.preempted)
    stopped_at = max(project.checkpoint_files(run))
    assert f"at step {stopped_at}" in status.reason
    assert "launcher resume stopped" in status.reason
    assert 2 <= stopped_at < STEPS

    done = here.run(TORCHRUN, str(run))
    assert done.code == ExitCode.ok, done.output
    assert f"resuming from step {stopped_at}" in run.log(2, 0).read_text()
    assert f"step {stopped_at + 1}/{STEPS}" in run.log(2, 0).read_text()
    assert_same(run, undisturbed)
