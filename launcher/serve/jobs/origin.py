"""What a job starts from that tunes a fine-tuned model further: a folder with all its weights."""

from __future__ import annotations

import logging
import shutil
import subprocess
from pathlib import Path

from launcher import entry
from launcher.core.errors import ConfigError, ExitCode, StorageError
from launcher.core.processes import end_with_parent
from launcher.core.rundir import RunDir
from launcher.core.runtime import environment_without_ranks
from launcher.runs.start import working_folder
from launcher.serve.db.tables import Job, Model
from launcher.serve.naming import base_of
from launcher.serve.service import Service

_LOG = logging.getLogger(__name__)
_FOLDER = "base"


def folder_of(service: Service, job: Job, data: Path) -> Path | None:
    """The folder, None for a base that the site offers; `data` is the job's own folder.

    Raises `ConfigError` if the model is gone.
    """
    if base_of(job.model) == job.model:
        return None
    own = data / _FOLDER
    if own.is_dir():
        return own
    model = _model(service, job)
    return _run(service, model).export if model.is_final else own


def prepare(service: Service, job: Job, data: Path) -> None:
    """Write the folder of a checkpoint, which its own job may drop for newer ones at any time.

    It appears whole or not at all. Raises `ConfigError` if it cannot be made, `StorageError` if
    another try may do.
    """
    own = data / _FOLDER
    if base_of(job.model) == job.model or own.is_dir():
        return
    model = _model(service, job)
    if model.is_final:
        return
    for left in data.glob(f".{_FOLDER}.*"):  # of a try that was killed
        shutil.rmtree(left, ignore_errors=True)
    run = _run(service, model)
    step = ("--checkpoint", str(model.step))
    ended = subprocess.run(  # noqa: S603
        entry.command("launcher.inference.export", str(run), *step, "-o", str(own)),
        cwd=working_folder(run),
        # The GPUs are for jobs.
        env={**environment_without_ranks(), "CUDA_VISIBLE_DEVICES": ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        preexec_fn=end_with_parent(),
    )
    if ended.returncode == 0:
        return
    _LOG.error("job %s: its base could not be made:\n%s", job.id, ended.stderr)
    if ended.returncode == ExitCode.storage:
        raise StorageError("the checkpoint could not be written as a model", where=str(own))
    raise ConfigError("this checkpoint cannot be trained further", where=job.model)


def _model(service: Service, job: Job) -> Model:
    with service.database.read() as session:
        found = session.get(Model, job.model)
    if found is None or found.deleted_at is not None:
        raise ConfigError("it does not exist any more", where=job.model)
    return found


def _run(service: Service, model: Model) -> RunDir:
    return RunDir(service.runs / model.job_id)
