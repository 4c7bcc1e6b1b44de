"""Real runs that end early, are killed or go on beyond their end, and what their result is."""

import json
import signal

import pytest

from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import State
from support import project
from support.project import DIRECT, LAUNCHER, TORCHRUN, Project, checkpoint_files, losses

pytestmark = pytest.mark.slow

RESUME = (*LAUNCHER, "resume")
#: A rate at which the held-out loss soon gets worse, on two ranks of ZeRO-2.
STOPPING = (
    *("data.validation=held.jsonl", "batch.sequences=4", "schedule=constant", "optim.lr=3e-2"),
    *("train.steps=40", "eval=default", "eval.every_steps=2", "train.early_stop.patience=2"),
    *("export.at_end=true", "checkpoint.every_steps=3", "checkpoint.keep_last=1"),
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    made = Project(tmp_path_factory.mktemp("early"))
    made.write_data(project.conversations(40))
    records = project.conversations(60)[40:]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (made.folder / "held.jsonl").write_text(lines)
    return made


def held_out(run):
    """Step -> held-out loss."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return {line["step"]: line["eval/loss"] for line in lines if line["kind"] == "eval"}


@pytest.fixture(scope="module")
def straight(here):
    done = here.run(TORCHRUN, *here.words("straight", *STOPPING))
    assert done.code == ExitCode.ok, done.output
    return here.folder_of("straight"), done.output


def test_a_run_ends_early_with_its_best_weights(straight):
    run, output = straight
    scores, chosen = held_out(run), read_json(run.best)
    best = min(scores, key=lambda step: scores[step])
    assert (chosen["step"], chosen["result"]) == (best, best)
    assert chosen["stopped"] == best + 4 < 40
    status = run.status()
    told = f"stopped early at step {best + 4}: eval.loss has not improved for 2 evaluations;"
    assert status.reason == f"{told} best at step {best}"
    assert (status.state, status.exit_code, status.step) == (State.succeeded, 0, best + 4)
    assert told in output
    # What is compared and exported is the best, and no more checkpoints are kept than needed.
    tuned = read_json(run.eval / "tuned.json")
    assert tuned["step"] == best
    assert tuned["metrics"]["loss"] == pytest.approx(scores[best], rel=1e-6)
    assert read_json(run.eval / "comparison.json")["metrics"]["loss"]["tuned"] == pytest.approx(
        scores[best], rel=1e-6
    )
    assert list(checkpoint_files(run)) == [best, best + 4]
    assert f"stopped early, step {best + 4}" in run.report.read_text()


def test_the_export_is_that_of_the_best(straight):
    from safetensors import safe_open

    from launcher.model.checkpoint import newest_valid

    run, _ = straight
    best = newest_valid(run, print, read_json(run.best)["result"])
    reader = best.weights()
    with safe_open(run.export / "model.safetensors", "pt") as exported:
        for name in exported.keys():  # noqa: SIM118 (a reader is not a mapping)
            assert exported.get_tensor(name).equal(reader.tensor(name))


def test_a_killed_run_decides_as_one_that_was_not(here, straight):
    run, _ = straight
    stopped = read_json(run.best)["stopped"]
    killed = here.folder_of("killed")
    started = here.start(TORCHRUN, *here.words("killed", *STOPPING))
    # Patience is being counted then.
    started.wait_until(
        lambda: killed.metrics.exists() and stopped - 2 in held_out(killed), "its evaluation"
    )
    for rank in (0, 1):
        project.kill_rank(killed, rank, signal.SIGKILL)
    assert started.end().code != ExitCode.ok
    assert here.run(RESUME, "killed").code == ExitCode.ok
    assert read_json(killed.best) == read_json(run.best)
    assert held_out(killed) == held_out(run)
    assert checkpoint_files(killed) == checkpoint_files(run)
    refused = here.run(RESUME, "killed")
    assert refused.code == ExitCode.usage
    assert f"stopped early at step {stopped}" in refused.output


#: A run of one rank whose order, batches and rate do not depend on its length.
ON = (
    *("data.packing=true", "batch.sequences=2", "schedule=constant", "schedule.warmup=2"),
    *("checkpoint.keep_last=9", "launch.processes=1", "peft=lora", "peft.dropout=0.1"),
)


def test_a_run_that_goes_on_beyond_its_end_is_as_one_of_that_length(here):
    assert here.run(DIRECT, *here.words("long", *ON, "train.steps=9")).code == ExitCode.ok
    more = ("data.validation=held.jsonl", "eval=default", "export.at_end=true")
    assert here.run(DIRECT, *here.words("short", *ON, *more, "train.steps=5")).code == ExitCode.ok
    run, whole = here.folder_of("short"), here.folder_of("long")
    exported = (run.export / "adapter_model.safetensors").read_bytes()
    assert read_json(run.eval / "tuned.json")["step"] == 5

    done = here.run(RESUME, "short", "train.steps=9")
    assert done.code == ExitCode.ok, done.output
    assert "9 steps instead of 5: the learning rate is that of a constant schedule" in done.output
    assert checkpoint_files(run)[9] == checkpoint_files(whole)[9]
    assert losses(run) == losses(whole)
    assert read_json(run.eval / "tuned.json")["step"] == 9
    assert (run.export / "adapter_model.safetensors").read_bytes() != exported
    status = run.status()
    assert (status.state, status.step, status.steps, status.attempt) == (State.succeeded, 9, 9, 2)
    assert sorted(path.name for path in run.path.glob(".export*")) == []


def test_a_decay_goes_on_as_that_of_the_new_length(here):
    words = ("batch.sequences=2", "schedule=linear", "schedule.warmup=0", "launch.processes=1")
    assert here.run(DIRECT, *here.words("decay", *words, "train.steps=4")).code == ExitCode.ok
    done = here.run(RESUME, "decay", "train.epochs=5", "--processes", "1")
    assert done.code == ExitCode.ok, done.output
    run = here.folder_of("decay")
    steps = run.status().steps
    rates = losses(run, "lr")
    assert rates[4] == pytest.approx(2e-5 * (1 - 3 / 4))
    assert rates[5] == pytest.approx(2e-5 * (1 - 4 / steps))
    assert f"at step 4 and goes on at {rates[5]:.2e}" in done.output
