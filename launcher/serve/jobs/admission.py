"""New jobs: files are checked and laid out, numbers settled; then they wait for their turn."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from launcher.core.errors import ConfigError
from launcher.core.files import storage_errors, write_atomic
from launcher.serve import judges
from launcher.serve.db.tables import File, Job, JobState
from launcher.serve.files import validation
from launcher.serve.files.examples import ExampleKind
from launcher.serve.files.questions import questions
from launcher.serve.files.validation import FileFault
from launcher.serve.jobs import journal, origin, outcome
from launcher.serve.jobs.journal import Note
from launcher.serve.jobs.methods import METHODS
from launcher.serve.jobs.workspace import GRADER, Workplace


def check(place: Workplace, job: Job) -> None:
    """Move a job from validating_files to queued, or to failed. May take minutes.

    Whoever does it again after a crash does the same.
    """
    try:
        kind = _examples_of(place, job)
        examples, notes = _keep(place, job, "training", kind)
        job.cursor = {**job.cursor, "examples": examples}
        if job.validation_file:
            held_out, more = _keep(place, job, "validation", kind)
            notes += more
            folder = place.data_of(job.id)
            shared = overlap(folder / "training.jsonl", folder / "validation.jsonl")
            notes += [_overlap_note(shared, held_out)] if shared else []
        origin.prepare(place.service, job, place.data_of(job.id))
        made = place.translated(job)
    except _JobFault as fault:
        outcome.fail(place, job.id, fault.code, str(fault), fault.param)
        return
    except ConfigError as error:
        outcome.fail(place, job.id, "invalid_configuration", str(error), None)
        return
    with place.owned(job.id) as (session, row):
        # A pause may have come in between; what was found stays.
        row.hyperparameters = made.numbers.as_dict()
        row.cursor = {**job.cursor, "launch": made.config.launch.name}
        if row.state is JobState.validating_files:
            row.state = JobState.queued
            text = "Files validated, moving job to queued state"
            journal.write(session, row.id, [*notes, Note("validated", text)])


def overlap(training: Path, validation: Path) -> int:
    """How many lines of the validation file are examples of the training file too.

    However they are written: blanks and the order of members do not matter.
    """
    held_out = Counter(_digests(validation))
    return sum(held_out.pop(digest, 0) for digest in _digests(training))


def _digests(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as lines:
        for line in lines:
            plain = json.dumps(json.loads(line), sort_keys=True, separators=(",", ":"))
            yield hashlib.blake2b(plain.encode(), digest_size=16).digest()


def _overlap_note(shared: int, held_out: int) -> Note:
    which = "All" if shared == held_out else f"{shared:,} of the"
    text = (
        f"{which} {held_out:,} validation examples are in the training file too: the validation"
        " numbers say little about what the model has not seen. Take them out of one of the files."
    )
    return Note("overlap", text, level="warn")


class _JobFault(Exception):
    def __init__(self, code: str, message: str, param: str) -> None:
        super().__init__(message)
        self.code, self.param = code, param


def _examples_of(place: Workplace, job: Job) -> ExampleKind:
    """What a line of the job's files is. A grader is kept beside them. `ConfigError` for one that
    the site does not take any more."""
    known = METHODS[job.method].examples
    if known is not None:
        return known
    wire = job.asked["grader"]
    grader = judges.grader_of(wire, place.service.site, "method.reinforcement.grader")
    file = place.data_of(job.id) / GRADER
    with storage_errors(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, judges.as_file(wire))
    return questions(grader.missing)


def _keep(place: Workplace, job: Job, name: str, examples: ExampleKind) -> tuple[int, list[Note]]:
    """Examples of the file, and what the client is to know of it."""
    param = f"{name}_file"
    with place.service.database.read() as session:
        sha256 = _content(session, job, param)
    if sha256 is None:
        found = f"The {name} file was deleted before it could be read."
        raise _JobFault(f"invalid_{param}", found, param)
    path: Path = place.data_of(job.id) / f"{name}.jsonl"
    least = validation.LEAST_EXAMPLES if name == "training" else 1
    try:
        with place.service.store.open(sha256) as content:
            count, unread = validation.keep(
                content,
                path,
                name,
                examples,
                least=least,
                line_bytes=place.service.site.limits.line_bytes,
            )
    except FileFault as fault:
        raise _JobFault(fault.code, str(fault), param) from fault
    return count, [Note(f"unread-{name}", unread, level="warn")] if unread else []


def _content(session: Session, job: Job, param: str) -> str | None:
    file_id = job.training_file if param == "training_file" else job.validation_file
    wanted = select(File.sha256).where(File.id == file_id, File.project_id == job.project_id)
    return session.scalar(wanted)
