"""Runs with `batch.micro=auto` on real ranks: the same losses, the choice kept, or made anew."""

from __future__ import annotations

import json

import pytest

from launcher.core.errors import ExitCode
from launcher.core.files import read_json, write_json
from support import project
from support.project import DIRECT, LAUNCHER, TORCHRUN, Project

pytestmark = pytest.mark.slow
TRAIN, RESUME = (*LAUNCHER, "train"), (*LAUNCHER, "resume")
WORDS = ("batch.sequences=8", "optim.lr=1e-3", "schedule=constant", "checkpoint.every_steps=2")
AUTO = "batch.micro=auto"


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    made = Project(tmp_path_factory.mktemp("auto"))
    made.write_data(project.conversations(60))
    return made


def log_of(run, attempt=1):
    return run.log(attempt, 0).read_text()


def trained(here, command, name, *words):
    done = here.run(command, *here.words(name, *WORDS, *words))
    assert done.code == ExitCode.ok, done.output
    run = here.folder_of(name)
    return project.losses(run), read_json(run.plan), log_of(run)


@pytest.fixture(scope="module")
def plain(here):
    words = ("batch.micro=1", "engine=zero2", "launch.processes=2", "train.steps=4")
    return trained(here, TRAIN, "plain", *words)[0]


def about(log):
    return [line for line in log.splitlines() if f" by {AUTO}, " in line]


@pytest.mark.parametrize(
    ("name", "command", "words"),
    [
        ("zero2", TRAIN, ("engine=zero2", "launch.processes=2")),
        ("direct", TORCHRUN, ("engine=zero0",)),
        ("single", DIRECT, ("engine=zero2", "data.packing=false", "data.shuffle=false")),
    ],
)
def test_the_fastest_that_fits_is_measured_and_losses_are_the_same(
    here, plain, name, command, words
):
    losses, plan, log = trained(here, command, name, AUTO, "train.steps=4", *words)
    if name == "single":
        plain = trained(here, command, "one", "batch.micro=1", "train.steps=4", *words)[0]
    assert losses == pytest.approx(plain, rel=1e-6)
    assert plan["micro_by"] == "measured"
    assert plan["micro_batch"] * plan["accumulation"] * plan["world_size"] == 8
    (line,) = about(log)
    assert line.startswith(
        f"batch    micro-batch {plan['micro_batch']}, accumulation {plan['accumulation']}"
        f" by {AUTO}, measured: 1 at "
    )
    assert f"{plan['micro_batch']} at " in line
    report = here.folder_of(name).path.joinpath("report.html").read_text()
    assert f"{plan['micro_batch']} at once" in report


def test_a_resume_keeps_the_choice_and_another_number_of_ranks_makes_its_own(here, plain):
    words = (AUTO, "engine=zero2", "launch.processes=2", "train.steps=2")
    trained(here, TRAIN, "kept", *words)
    run = here.folder_of("kept")
    # Not what was measured, so that it shows where it is measured again.
    known = {**read_json(run.plan), "micro_batch": 4, "accumulation": 1}
    write_json(run.plan, known)
    done = here.run(RESUME, "kept", "train.steps=4")
    assert done.code == ExitCode.ok, done.output
    plan = read_json(run.plan)
    assert (plan["micro_batch"], plan["micro_by"]) == (4, "measured")
    assert about(log_of(run, 2)) == [
        f"batch    micro-batch 4, accumulation 1 by {AUTO}, as the run has found before"
    ]
    assert project.losses(run) == pytest.approx(plain, rel=1e-6)


def test_another_number_of_ranks_measures_again(here):
    words = (AUTO, "engine=zero2", "train.steps=4")
    trained(here, TORCHRUN, "other", *words[:2], "train.steps=2")
    run = here.folder_of("other")
    done = here.run(RESUME, "other", "train.steps=4", "--processes", "1")
    assert done.code == ExitCode.ok, done.output
    assert read_json(run.plan)["micro_by"] == "measured"
    assert read_json(run.plan)["world_size"] == 1
    assert "measured: 1 at " in about(log_of(run, 2))[0]


def test_zero3_is_estimated_and_said_to_be(here, plain):
    words = (AUTO, "engine=zero3", "launch.processes=2", "train.steps=4")
    losses, plan, log = trained(here, TRAIN, "zero3", *words)
    assert losses == pytest.approx(plain, rel=1e-5)
    assert (plan["micro_batch"], plan["micro_by"]) == (4, "estimate")
    (line,) = about(log)
    assert "an estimate, as ZeRO-3 is not measured: about " in line


def test_a_probe_finds_it_and_proposes_a_number(here):
    words = here.words("p", *WORDS, AUTO, "launch.processes=2", "train.steps=4")
    done = here.run((*LAUNCHER, "plan", "--probe", "--json"), *words)
    assert done.code == ExitCode.ok, done.output
    text = done.output[done.output.index("{") : done.output.rindex("}") + 1]
    first, *others = json.loads(text)["probe"]["trials"]
    assert first["outcome"] == "measured"
    assert all(any("batch.micro=" in w for w in trial["overrides"]) for trial in others)


def test_an_objective_that_makes_its_rows_itself_is_refused(here):
    (here.folder / "own.py").write_text(OWN)
    words = here.words("own", *WORDS, "objective.name=own.py", "train.steps=2")
    done = here.run(DIRECT, *words, AUTO)
    assert done.code == ExitCode.usage, done.output
    assert "batch.micro: auto, and objective " in done.output
    assert "objective.py makes its rows itself" in done.output
    assert "HINT: set batch.micro=null" in done.output
    done = here.run(DIRECT, *words)
    assert done.code == ExitCode.ok, done.output


OWN = '''
from dataclasses import dataclass

from launcher.config.schema import ObjectiveConfig
from launcher.objectives import base


@dataclass(kw_only=True, slots=True)
class Options(ObjectiveConfig):
    """Nothing to choose."""

    name: str = "own.py"


class Same:
    def __init__(self, rows):
        self.rows = rows

    def step(self, step):
        return self.rows.step(0)


class Objective(base.Objective):
    """Trains on the first batch alone."""

    def rows(self, prepared):
        return Same(prepared)
'''
