"""What clients are told of a job whose run is ahead of what its queue says."""

from __future__ import annotations

import json
import socket

from sqlalchemy import select

from launcher.core.files import write_json
from launcher.core.rundir import RunDir, State
from launcher.launch.local import supervisor_file
from launcher.launch.spec import job_file
from launcher.serve.db.tables import Event, Job, JobState, Model, Project
from launcher.serve.jobs import cancellation, progress
from launcher.serve.jobs.ownership import Owner, claim
from launcher.serve.jobs.workspace import Workplace
from launcher.serve.service import Service
from support.plans import launch_plan


def test_a_job_has_started_before_its_first_step(service: Service) -> None:
    with service.database.begin() as session:
        session.add(Project(id="proj_a", name="a"))
        session.flush()
        used = {"batch_size": 1, "n_epochs": 2}
        row = Job(
            id="ftjob-0",
            state=JobState.queued,
            cursor={"launch": "slurm", "examples": 2},
            project_id="proj_a",
            model="tiny",
            training_file="file-a",
            seed=1,
            hyperparameters=used,
        )
        session.add(row)
    owner = Owner.here()
    claim(service.database, owner, 1)
    place = Workplace(service, owner)
    run = RunDir(service.runs / "ftjob-0")
    checkpoint = run.checkpoints / "step-00000002"
    checkpoint.mkdir(parents=True)
    run.set_status(State.running, step=2, steps=4, attempt=1)
    lines = [
        {"step": step, "kind": "train", "loss": 1.0, "tokens": step, "time": 5.0}
        for step in (1, 2, 3)
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (checkpoint / "manifest.json").write_text(json.dumps({"step": 2}))

    def keys() -> list[str]:
        with service.database.read() as session:
            found = select(Event.key).where(Event.job_id == "ftjob-0").order_by(Event.number)
            return [*session.scalars(found)]

    with service.database.read() as session:
        job = session.scalars(select(Job)).one()
    progress.note_progress(place, job, run)
    assert keys() == ["started", "step-1", "step-2", "step-3", "checkpoint-2"]
    folders = {"train": str(run.path / "a"), "validation": str(run.path / "b")}
    for split, dropped in (("a", 0), ("b", 3)):
        (run.path / split).mkdir()
        index = {"counts": {"read": 1200, "dropped": dropped}, "max_length": 64}
        (run.path / split / "index.json").write_text(json.dumps(index))
    run.data.write_text(json.dumps(folders))
    progress.note_progress(place, job, run)
    assert keys()[-2:] == ["checkpoint-2", "dropped-validation"]
    with service.database.read() as session:
        event = session.scalars(select(Event).where(Event.key == "dropped-validation")).one()
        assert session.scalars(select(Job)).one().cursor["prepared"]
    assert event.level == "warn"
    assert event.message.startswith("3 of 1,200 examples of the validation file are left out")
    assert event.data == {"file": "validation_file", "left_out": 3, "examples": 1200}
    progress.note_progress(place, job, run)
    assert keys() == ["started", "step-1", "step-2", "step-3", "checkpoint-2", "dropped-validation"]


def test_a_job_that_ends_as_it_is_paused_has_all_its_checkpoints(service: Service) -> None:
    with service.database.begin() as session:
        session.add(Project(id="proj_a", name="a"))
        session.flush()
        row = Job(
            id="ftjob-0",
            state=JobState.paused,
            wanted=JobState.paused,
            cursor={"launch": "local", "examples": 2, "started": True},
            project_id="proj_a",
            model="tiny",
            training_file="file-a",
            seed=1,
            asked={"model": "tiny", "offer": "tiny"},
            hyperparameters={"batch_size": 1, "n_epochs": 2},
        )
        session.add(row)
    owner = Owner.here()
    claim(service.database, owner, 1)
    place = Workplace(service, owner)
    run = RunDir(service.runs / "ftjob-0")
    for step in (2, 4):
        folder = run.checkpoints / f"step-{step:08}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"step": step}))
    lines = [
        {"step": step, "kind": "train", "loss": 1.0, "tokens": step, "time": 5.0}
        for step in (1, 2, 3, 4)
    ]
    run.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run.config.write_text("")
    run.attempt(1).mkdir(parents=True)
    write_json(job_file(run, 1), launch_plan(RunDir(service.home / "x"), backend="local").to_json())
    gone = {"pid": 0, "host": socket.gethostname(), "time": 1.0}
    write_json(supervisor_file(run, 1), gone)
    run.set_status(State.succeeded, step=4, steps=4, attempt=1)
    with service.database.read() as session:
        job = session.scalars(select(Job)).one()
    cancellation.stop(place, job)
    with service.database.read() as session:
        assert session.scalars(select(Job)).one().state is JobState.succeeded
        assert [*session.scalars(select(Model.step).order_by(Model.step))] == [2, 4]
