"""What jobs start from that tune fine-tuned models further."""

from __future__ import annotations

import subprocess

import pytest

from launcher import entry
from launcher.core.errors import ConfigError, ExitCode, StorageError
from launcher.serve.db.tables import Job, Model, now
from launcher.serve.http import access
from launcher.serve.jobs import origin

FINAL, STEP = "ft:tiny:local::a", "ft:tiny:local::b:ckpt-step-5"


@pytest.fixture
def models(service):
    with service.database.begin() as session:
        project = access.find_project(session, "ours").id
        session.add(Job(id="ftjob-a", project_id=project, model="tiny", training_file="f", seed=1))
        session.flush()
        common = {"project_id": project, "job_id": "ftjob-a"}
        session.add(Model(name=FINAL, step=9, checkpoint_id="c1", is_final=True, **common))
        session.add(Model(name=STEP, step=5, checkpoint_id="c2", **common))


def job(model: str) -> Job:
    return Job(id="ftjob-b", model=model)


@pytest.fixture
def exports(monkeypatch):
    """Commands that would run; they end with the code that is set."""
    ran, code = [], [0]

    def run(command, **options):
        ran.append((command, options["env"]["CUDA_VISIBLE_DEVICES"]))
        return subprocess.CompletedProcess(command, code[0], stderr="why")

    monkeypatch.setattr(subprocess, "run", run)
    return ran, code


def test_where_a_job_starts(service, models, exports, tmp_path):
    ran, _ = exports
    assert origin.folder_of(service, job("tiny"), tmp_path) is None
    assert origin.folder_of(service, job(FINAL), tmp_path) == service.runs / "ftjob-a" / "export"
    assert origin.folder_of(service, job(STEP), tmp_path) == tmp_path / "base"
    for name in ("tiny", FINAL):
        origin.prepare(service, job(name), tmp_path)
    assert ran == []
    left = tmp_path / ".base.7.tmp"
    left.mkdir()
    origin.prepare(service, job(STEP), tmp_path)
    [(command, gpus)] = ran
    words = ["--checkpoint", "5", "-o", str(tmp_path / "base")]
    expected = entry.command("launcher.inference.export", str(service.runs / "ftjob-a"), *words)
    assert list(command) == list(expected)
    assert (gpus, left.exists()) == ("", False)


def test_what_was_made_is_kept_whatever_becomes_of_the_checkpoint(
    service, models, exports, tmp_path
):
    (tmp_path / "base").mkdir()
    with service.database.begin() as session:
        for name in (FINAL, STEP):
            session.get(Model, name).deleted_at = now()
    origin.prepare(service, job(STEP), tmp_path)
    assert exports[0] == []
    assert origin.folder_of(service, job(STEP), tmp_path) == tmp_path / "base"
    with pytest.raises(ConfigError, match="does not exist any more"):
        origin.folder_of(service, job(FINAL), tmp_path / "other")


def test_a_full_disk_may_pass_other_faults_do_not(service, models, exports, tmp_path):
    _, code = exports
    code[0] = int(ExitCode.storage)
    with pytest.raises(StorageError):
        origin.prepare(service, job(STEP), tmp_path)
    for code[0] in (1, 2, -9):
        with pytest.raises(ConfigError, match="cannot be trained further"):
            origin.prepare(service, job(STEP), tmp_path)
