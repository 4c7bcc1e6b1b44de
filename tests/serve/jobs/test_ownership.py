"""Which controller has which job: in a real database, with owners that live and die."""

from __future__ import annotations

import dataclasses
import subprocess
import time

import pytest
from sqlalchemy import select

from launcher.serve.db.tables import Job, JobState, Project
from launcher.serve.jobs import ownership
from launcher.serve.jobs.ownership import LostJobError, Owner, claim, owned


@pytest.fixture
def jobs(service):
    """Make jobs in a state; returns their ids."""

    def make(count: int, state: JobState = JobState.queued, **changes: object) -> list[str]:
        with service.database.begin() as session:
            if session.get(Project, "proj_a") is None:
                session.add(Project(id="proj_a", name="a"))
                session.flush()
            before = len(list(session.scalars(select(Job))))
            made = [
                Job(
                    id=f"ftjob-{before + number}",
                    project_id="proj_a",
                    model="tiny",
                    training_file="file-a",
                    seed=1,
                    state=state,
                    **{"cursor": {"launch": "local"}, **changes},
                )
                for number in range(count)
            ]
            session.add_all(made)
        return [job.id for job in made]

    return make


def row(service, job_id):
    with service.database.read() as session:
        return session.scalars(select(Job).where(Job.id == job_id)).one()


def another(**changes: object) -> Owner:
    """A controller in another living process, or elsewhere."""
    return dataclasses.replace(Owner.here(), since=time.time() - 1, **changes)


def test_jobs_wait_for_places_oldest_first(service, jobs):
    first, second, third = jobs(3)
    me = Owner.here()
    assert claim(service.database, me, 2) == [first, second]
    assert claim(service.database, me, 2) == [first, second]
    assert [row(service, j).cursor.get("slot") for j in (first, second, third)] == [0, 1, None]
    with owned(service.database, me, first) as (_, job):
        job.state = JobState.succeeded
        ownership.give_up_place(job)
    assert claim(service.database, me, 2) == [second, third]
    assert row(service, third).cursor["slot"] == 0


def test_places_are_counted_over_all_controllers_of_a_machine(service, jobs):
    first, second = jobs(2)
    assert claim(service.database, Owner.here(), 1) == [first]
    assert claim(service.database, another(), 1) == []
    elsewhere = another(host="another")
    assert claim(service.database, elsewhere, 1) == [second]
    assert claim(service.database, elsewhere, 1) == [second]


def test_slurm_is_a_queue_itself(service, jobs):
    ids = jobs(5, cursor={"launch": "slurm"})
    assert claim(service.database, Owner.here(), 1) == ids


def test_a_controller_that_died_here_has_no_jobs(service, jobs):
    (job_id,) = jobs(1, JobState.validating_files)
    process = subprocess.Popen(["sleep", "60"])
    gone = another(pid=process.pid)
    assert claim(service.database, gone, 1) == [job_id]
    assert claim(service.database, Owner.here(), 1) == []
    process.kill()
    process.wait()
    assert claim(service.database, Owner.here(), 1) == [job_id]
    with pytest.raises(LostJobError), owned(service.database, gone, job_id):
        pass


def test_a_controller_elsewhere_loses_its_jobs_with_time(service, jobs, monkeypatch):
    (job_id,) = jobs(1, JobState.validating_files)
    assert claim(service.database, another(host="another"), 1) == [job_id]
    assert claim(service.database, Owner.here(), 1) == []
    later = time.time() + 31
    monkeypatch.setattr(time, "time", lambda: later)
    assert claim(service.database, Owner.here(), 1) == [job_id]


def test_processes_elsewhere_are_left_to_those_there(service, jobs):
    there = {"launch": "local", "slot": 0, "host": "another", "started": True}
    (job_id,) = jobs(1, JobState.running, cursor=there)
    assert claim(service.database, Owner.here(), 1) == []
    assert claim(service.database, another(host="another"), 1) == [job_id]


def test_what_is_wanted_is_done_after_the_end_too(service, jobs):
    ids = jobs(1, JobState.cancelled, wanted=JobState.cancelled)
    jobs(1, JobState.cancelled)
    jobs(1, JobState.paused)
    assert claim(service.database, Owner.here(), 1) == ids
