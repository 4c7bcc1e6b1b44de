"""When processes of a job are lost: what counts as a loss, and how many are too many."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select

from launcher.core.errors import LauncherError, StorageError
from launcher.core.rundir import RunDir, State
from launcher.launch.retry import BusyError
from launcher.serve.db.tables import Job, JobState, Project
from launcher.serve.jobs import launch, progress
from launcher.serve.jobs.ownership import Owner, claim
from launcher.serve.jobs.workspace import Workplace
from launcher.serve.service import Service


@pytest.fixture
def place(service: Service) -> Workplace:
    """A controller with one running job, whose run is at step 5."""
    with service.database.begin() as session:
        session.add(Project(id="proj_a", name="a"))
        session.flush()
        kept = {"project_id": "proj_a", "model": "tiny", "training_file": "file-a", "seed": 1}
        job = Job(id="ftjob-0", state=JobState.running, cursor={"launch": "local"}, **kept)
        session.add(job)
    owner = Owner.here()
    assert claim(service.database, owner, 1) == ["ftjob-0"]
    run = RunDir(service.runs / "ftjob-0")
    run.path.mkdir(parents=True)
    run.set_status(State.running, step=5, steps=100)
    return Workplace(service, owner)


def job_of(place: Workplace) -> Job:
    with place.service.database.read() as session:
        return session.scalars(select(Job).where(Job.id == "ftjob-0")).one()


def lose(place: Workplace) -> None:
    progress._again(place, job_of(place), place.run_of("ftjob-0"))


def test_losses_without_progress_between_them_end_a_job(
    place: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "begin", lambda *_: None)
    for count in range(1, 6):
        lose(place)
        assert job_of(place).cursor["losses"] == count
    place.run_of("ftjob-0").set_status(State.running, step=6)
    lose(place)
    assert job_of(place).cursor["losses"] == 1
    for _ in range(5):
        lose(place)
    found = job_of(place)
    assert found.state is JobState.failed
    assert "again and again" in str(found.error)


@pytest.mark.parametrize(
    ("error", "counted"),
    [(BusyError("busy"), 0), (StorageError("full"), 0), (LauncherError("x"), 1)],
)
def test_a_start_that_is_put_off_is_no_loss(
    place: Workplace, monkeypatch: pytest.MonkeyPatch, error: LauncherError, counted: int
) -> None:
    def begin(*_: Any) -> None:
        raise error

    monkeypatch.setattr(launch, "begin", begin)
    for _ in range(7 if not counted else 1):
        with pytest.raises(type(error)):
            lose(place)
    assert job_of(place).cursor.get("losses", 0) == counted
    assert job_of(place).state is JobState.running
