"""An adapter that is trained further by its own answers is held near what it was before."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import pytest

from launcher.core.errors import ExitCode
from launcher.core.rundir import RunDir
from support import project
from support.models import make_llama
from support.project import DIRECT, TORCHRUN, Project

pytestmark = pytest.mark.slow

STEPS = 4
COMMON = (
    *("data.max_length=64", "seed=3", "schedule=constant", "engine.precision=fp32"),
    *("peft=lora", "checkpoint.every_steps=1", "checkpoint.keep_last=9"),
)
WORDS = (
    *("objective=grpo", "objective.beta=0.5", "objective.group_size=4"),
    "objective.grader={type: string_check, name: has, input: '{{sample.output_text}}',"
    " reference: e, operation: ilike}",
    *("objective.max_new_tokens=8", "batch.sequences=16", f"train.steps={STEPS}", "optim.lr=1e-2"),
    "peft.adapter=before",
)


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A project with an adapter that a run has left."""
    folder = tmp_path_factory.mktemp("further")
    made = Project(folder, make_llama(folder / "model", initializer_range=0.1))
    made.write_data({"prompt": f"Say {i}.", "completion": "a b c"} for i in range(24))
    words = ("batch.sequences=8", "train.steps=6", "optim.lr=5e-2", "export.at_end=true")
    done = made.run(DIRECT, *made.words("first", *COMMON, *words))
    assert done.code == ExitCode.ok, done.output
    shutil.copytree(made.folder_of("first").export, made.folder / "before")
    return made


def trained(here: Project, name: str, *words: str, command: tuple[str, ...] = DIRECT) -> RunDir:
    done = here.run(command, *here.words(name, *COMMON, *WORDS, *words))
    assert done.code == ExitCode.ok, done.output
    return here.folder_of(name)


@pytest.fixture(scope="module")
def straight(here):
    return trained(here, "straight")


def weights(run: RunDir) -> dict[str, str]:
    return {k: v for k, v in project.checkpoint_files(run)[STEPS].items() if k[0] in "wo"}


def test_it_begins_at_its_reference_and_leaves_it(straight):
    apart = project.losses(straight, "kl")
    assert abs(apart[1]) < 1e-9
    assert apart[STEPS] > 1e-4


@pytest.mark.parametrize("engine", ["zero2", "zero3"])
def test_two_ranks_learn_alike(here, straight, engine):
    run = trained(here, f"two-{engine}", f"engine={engine}", command=TORCHRUN)
    for key in ("kl", "loss", "grad_norm"):
        one, two = (project.losses(own, key) for own in (straight, run))
        for step in (1, 2):  # later rounding decides on other tokens
            assert two[step] == pytest.approx(one[step], rel=1e-4, abs=1e-6)


def test_killed_it_ends_with_the_same_bits(here, straight):
    script = (sys.executable, str(Path(__file__).parent / "killed_rank.py"), "update", "3")
    done = here.run(script, *here.words("killed", *COMMON, *WORDS))
    assert done.code == -signal.SIGKILL, done.output
    done = here.run(DIRECT, str(here.folder_of("killed")))
    assert done.code == ExitCode.ok, done.output
    assert weights(straight) == weights(here.folder_of("killed"))
    assert project.losses(here.folder_of("killed"), "kl") == project.losses(straight, "kl")


def test_another_adapter_in_its_place_is_refused(here):
    trained(here, "moved", "train.steps=1")
    former = here.folder / "former"
    shutil.move(here.folder / "before", former)
    try:
        shutil.copytree(former, here.folder / "before")
        other = here.folder / "before" / "adapter_model.safetensors"
        data = bytearray(other.read_bytes())
        data[-4:] = b"\0\0\0\0"
        other.write_bytes(data)
        done = here.run((*project.LAUNCHER, "resume"), "moved", "train.steps=2")
        assert done.code == ExitCode.usage, done.output
        assert "the adapter to go on from of" in done.output
    finally:
        shutil.rmtree(here.folder / "before")
        shutil.move(former, here.folder / "before")
