"""What the steps of a controller share, and where a job's things lie."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy.orm import Session

from launcher.core.rundir import RunDir
from launcher.serve import quota
from launcher.serve.db.tables import Job
from launcher.serve.jobs import origin, ownership
from launcher.serve.jobs.ownership import Owner
from launcher.serve.jobs.run_config import Inputs, Translation, translate
from launcher.serve.service import Service

#: File of a job's grader, in the folder of its data.
GRADER = "grader.yaml"


@dataclass(frozen=True, slots=True)
class Workplace:
    """A controller's service, and who it is."""

    service: Service
    owner: Owner

    def owned(self, job_id: str) -> AbstractContextManager[tuple[Session, Job]]:
        """A transaction on a job that is still this controller's; else `LostJobError`."""
        return ownership.owned(self.service.database, self.owner, job_id)

    def run_of(self, job_id: str) -> RunDir:
        """The job's run folder, whether made yet or not."""
        return RunDir(self.service.runs / job_id)

    def data_of(self, job_id: str) -> Path:
        """Folder of the files that the job's run reads."""
        return self.service.home / "data" / job_id

    def translated(self, job: Job) -> Translation:
        """The run that the job asks for; its files are checked. `ConfigError` if it cannot be."""
        folder = self.data_of(job.id)
        validation = folder / "validation.jsonl" if job.validation_file else None
        inputs = Inputs(
            runs=self.service.runs,
            training=folder / "training.jsonl",
            validation=validation,
            examples=job.cursor["examples"],
            base=origin.folder_of(self.service, job, folder),
            grader=folder / GRADER if "grader" in job.asked else None,
        )
        with self.service.database.read() as session:
            project = quota.name_of(session, job.project_id)
        return translate(self.service.site, job, inputs, self._config_dirs(), project)

    def _config_dirs(self) -> list[Path]:
        """`conf` in the service's folder: group options of the site's own."""
        own = self.service.home / "conf"
        return [own] if own.is_dir() else []
