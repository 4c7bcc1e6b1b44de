"""What a job's error blames: what of the request the run's own reason names."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from launcher.core.errors import ExitCode
from launcher.core.rundir import State, Status
from launcher.serve.db.tables import Job, JobState, Project
from launcher.serve.jobs import outcome
from launcher.serve.jobs.ownership import Owner, claim
from launcher.serve.jobs.workspace import Workplace
from launcher.serve.service import Service

GRADER = "method.reinforcement.grader"


@pytest.fixture
def place(service: Service) -> Workplace:
    """A controller with one running job."""
    with service.database.begin() as session:
        session.add(Project(id="proj_a", name="a"))
        session.flush()
        kept = {"project_id": "proj_a", "model": "tiny", "training_file": "file-a", "seed": 1}
        session.add(Job(id="ftjob-0", state=JobState.running, cursor={}, **kept))
    owner = Owner.here()
    assert claim(service.database, owner, 1) == ["ftjob-0"]
    return Workplace(service, owner)


@pytest.mark.parametrize(
    ("exit_code", "reason", "code", "param"),
    [
        (ExitCode.data, "data.train: nothing is left", "invalid_file_format", "training_file"),
        (
            ExitCode.data,
            "data preparation failed: FOLDER/training.jsonl:3: no JSON",
            "invalid_file_format",
            "training_file",
        ),
        (
            ExitCode.data,
            "rank 1 on node-2: FOLDER/validation.jsonl:4: no field item.a\n  HINT: mend data.train",
            "invalid_file_format",
            "validation_file",
        ),
        (
            ExitCode.data,
            "data.validation: no record is left of 2 read",
            "invalid_file_format",
            "validation_file",
        ),
        (ExitCode.data, "objective.grader: no score for any answer", "invalid_grader", GRADER),
        (
            ExitCode.data,
            "runs/ftjob-0/rollouts/step-1.jsonl: no answer can be learned from"
            "\n  HINT: data.train may have others",
            "invalid_configuration",
            None,
        ),
        (ExitCode.internal, "objective.grader: ours is away: HTTP 503", "server_error", GRADER),
        (ExitCode.usage, "FOLDER/grader.yaml.model: none", "invalid_configuration", GRADER),
        (ExitCode.out_of_memory, "the GPU is full; see data.train: it", "out_of_memory", None),
        (None, "", "server_error", None),
    ],
)
def test_an_error_blames_what_the_reason_names(
    place: Workplace, exit_code: ExitCode | None, reason: str, code: str, param: str | None
) -> None:
    reason = reason.replace("FOLDER", str(place.data_of("ftjob-0")))
    outcome.fail_run(place, "ftjob-0", Status(State.failed, reason=reason, exit_code=exit_code))
    with place.service.database.read() as session:
        error = session.scalars(select(Job.error).where(Job.id == "ftjob-0")).one()
    assert (error["code"], error["param"]) == (code, param)
