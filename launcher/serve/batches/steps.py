"""The first and the last step of a batch: its file is looked at, and files are made of its
answers."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import shutil
import threading
from collections.abc import Callable, Iterator
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from launcher.core.errors import LauncherError
from launcher.core.files import storage_errors
from launcher.serve.batches import claims, journal, lines
from launcher.serve.batches.claims import LostBatchError
from launcher.serve.batches.journal import Noted, Tally
from launcher.serve.batches.lines import StoppedError
from launcher.serve.db.database import AWAY, new_id
from launcher.serve.db.tables import Batch, BatchState
from launcher.serve.files import project_files
from launcher.serve.http.failure import ApiError
from launcher.serve.jobs.ownership import Owner
from launcher.serve.service import Service
from launcher.serve.store import Incoming
from launcher.serve.webhooks import outbox

_LOG = logging.getLogger(__name__)
#: Purpose of the files that batches make.
OUTPUT = "batch_output"
#: Nothing is wrong with a file that cannot be opened for want of these.
_PASSING = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN)
_UNANSWERED = {
    BatchState.cancelled: (
        "batch_cancelled",
        "This request was not answered before the batch was cancelled.",
    ),
    BatchState.expired: (
        "batch_expired",
        "This request could not be executed before the completion window expired.",
    ),
    BatchState.failed: (
        "server_error",
        "This request was not answered: the service had an internal error with the batch.",
    ),
}


def check(service: Service, owner: Owner, batch: Batch, halt: threading.Event) -> None:
    """Look at the file of a batch and keep its requests; the batch fails if something is wrong.

    Raises `LauncherError` where another try may do, `LostBatchError`, and `StoppedError` once
    `halt` is set.
    """
    found = _checked(service, batch, halt)
    with claims.owned(service.database, owner, batch.id) as (session, row):
        if row.state is not BatchState.validating:  # it is to be cancelled
            return
        if found.faults:
            _ended(session, row, BatchState.failed, found.faults)
        else:
            row.total, row.model = found.total, found.model
            claims.come_to(row, BatchState.in_progress)
    if found.faults:
        shutil.rmtree(service.batches / batch.id, ignore_errors=True)


def _checked(service: Service, batch: Batch, halt: threading.Event) -> lines.Checked:
    folder = service.batches / batch.id
    with storage_errors(folder):
        folder.mkdir(0o700, exist_ok=True)
    try:
        with service.database.read() as session:
            file = project_files.find(session, batch.project_id, batch.input_file)
    except ApiError:
        said = f"The file {batch.input_file} is not there any more."
        fault = {"code": "file_not_found", "line": None, "message": said, "param": "input_file_id"}
        return lines.Checked(faults=[fault])
    with service.store.open(file.sha256) as content:
        return lines.checked(
            *(content, file.bytes, folder / journal.REQUESTS, batch.endpoint),
            *(service.site.batches.requests, service.site.limits.line_bytes, halt.is_set),
        )


def end(
    service: Service,
    owner: Owner,
    batch_id: str,
    halt: threading.Event,
    fault: dict[str, Any] | None = None,
) -> None:
    """Make files of what is answered, and tell in one of them what is not; the batch has ended
    then. It has failed if there is a `fault` of ours.

    Raises `LauncherError` where another try may do, `LostBatchError`, and `StoppedError` once
    `halt` is set.
    """
    folder = service.batches / batch_id

    def going_on() -> None:
        if halt.is_set():
            raise StoppedError

    with claims.owned(service.database, owner, batch_id) as (_, row):
        # With a fault another try may follow, which goes on with the answers.
        if row.state is BatchState.in_progress and fault is None:
            claims.come_to(row, BatchState.finalizing)
    found = journal.noted(folder, going_on) if row.total else {}
    final = _final(row, len(found), fault)
    with contextlib.ExitStack() as stack:
        output, errors = (stack.enter_context(service.store.incoming()) for _ in range(2))
        for is_ok, line in _told(service, row, found, final):
            going_on()
            (output if is_ok else errors).write(line)
        made = {"output": output, "error": errors}
        made = {name: content for name, content in made.items() if content.bytes}
        for content in made.values():
            service.store.prepare(content)
        _settle(service, owner, row, made, found, final, fault)
    shutil.rmtree(folder, ignore_errors=True)


def _final(batch: Batch, answered: int, fault: dict[str, Any] | None) -> BatchState:
    if fault is not None:
        return BatchState.failed
    if batch.state is BatchState.cancelling:
        return BatchState.cancelled
    # A batch whose file has not been looked at has no requests yet, and is not complete.
    is_whole = batch.total > 0 and answered == batch.total
    return BatchState.completed if is_whole else BatchState.expired


def _settle(
    service: Service,
    owner: Owner,
    batch: Batch,
    made: dict[str, Incoming],
    found: dict[int, Noted],
    final: BatchState,
    fault: dict[str, Any] | None,
) -> None:
    """In one transaction the batch has ended, and its files are there."""
    tally = Tally()
    for answer in found.values():
        tally.add(answer)
    with claims.owned(service.database, owner, batch.id) as (session, row):
        for name, content in made.items():
            file = project_files.insert(
                *(session, service.store, content, row.project_id),
                *(f"{row.id}_{name}.jsonl", OUTPUT, row.output_expires_after),
            )
            setattr(row, f"{name}_file", file.id)
        claims.note(row, tally)
        _ended(session, row, final, [fault] if fault else None)


def _ended(
    session: Session, row: Batch, final: BatchState, faults: list[dict[str, Any]] | None
) -> None:
    if faults:
        row.errors = faults
    claims.come_to(row, final)
    row.owner, row.lease_until = None, 0.0
    outbox.batch_ended(session, row)


def _told(
    service: Service, batch: Batch, found: dict[int, Noted], final: BatchState
) -> Iterator[tuple[bool, bytes]]:
    """Whether each request went well, and what is told of it, in the order of the file."""
    if not batch.total:
        return
    with contextlib.ExitStack() as stack:
        named = _names(stack, service, batch, final)
        for number in range(batch.total):
            answer = found.get(number)
            if answer is not None:
                yield answer.is_ok, answer.line()
            elif named is not None:
                code, message = _UNANSWERED[final]
                error = {"code": code, "message": message}
                yield False, json.dumps(told(named(number), error=error)).encode() + b"\n"


def _names(
    stack: contextlib.ExitStack, service: Service, batch: Batch, final: BatchState
) -> Callable[[int], str] | None:
    """The `custom_id` of a request, by its number; None if they are lost, and the batch has failed
    for that."""
    try:
        requests = lines.Requests(service.batches / batch.id / journal.REQUESTS)
    except FileNotFoundError:
        if final is not BatchState.failed:
            raise
        return None
    stack.enter_context(contextlib.closing(requests))
    return lambda number: requests.of(number).custom_id


def told(
    custom_id: str, response: dict[str, Any] | None = None, error: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A line of an output or error file."""
    return {
        "id": new_id("batch_req_"),
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }


def give_up(
    service: Service, owner: Owner, batch_id: str, error: Exception, halt: threading.Event
) -> None:
    """End a batch that the service has a fault with; what is answered is kept if it can be read.

    Raises as `end`.
    """
    said = (
        f"The service had an internal error with this batch ({type(error).__name__}), of which its"
        " log says more. What is answered is in the files of the batch: send the rest again."
    )
    fault = {"code": "server_error", "line": None, "message": said, "param": None}
    try:
        end(service, owner, batch_id, halt, fault)
    except (LostBatchError, StoppedError, LauncherError, MemoryError, *AWAY):
        raise
    except Exception as why:
        if isinstance(why, OSError) and why.errno in _PASSING:
            raise
        _LOG.exception("batch %s: its answers cannot be read", batch_id)
        with claims.owned(service.database, owner, batch_id) as (session, row):
            _ended(session, row, BatchState.failed, [fault])
        shutil.rmtree(service.batches / batch_id, ignore_errors=True)


def sweep(service: Service) -> None:
    """Remove what a server that died has left of batches that have ended."""
    names = [path.name for path in service.batches.iterdir()]
    with service.database.read() as session:
        ended = [state for state in BatchState if state.is_final]
        wanted = select(Batch.id).where(Batch.id.in_(names), Batch.state.in_(ended))
        for gone in session.scalars(wanted):
            shutil.rmtree(service.batches / gone, ignore_errors=True)
