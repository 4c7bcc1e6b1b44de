"""A form with a file, from the socket into the store."""

# Annotations are not postponed here: FastAPI reads them.
import contextlib
from collections.abc import AsyncIterator
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import Depends, Request
from fastapi.concurrency import contextmanager_in_threadpool

from launcher.serve.files.inspection import Lookers
from launcher.serve.http.failure import ApiError
from launcher.serve.http.multipart import Form
from launcher.serve.store import Incoming, Store

#: Of each project, for each kind of work.
_THREADS = 2
#: What goes to a thread at once: few changes of threads, little memory.
_PIECE = 1 << 20
#: Beside the file: the other fields, boundaries and headers of parts.
_MARGIN = 1 << 20


class Workers:
    """Threads of an app for what takes long: few of each project, so that none waits for another.

    Among projects, the system shares the processors.
    """

    def __init__(self) -> None:
        self._writing: dict[str, CapacityLimiter] = {}
        self._reading: dict[str, CapacityLimiter] = {}
        self._showing: dict[str, CapacityLimiter] = {}
        self._testing: dict[str, CapacityLimiter] = {}
        self.lookers = Lookers()

    def writing(self, project_id: str) -> CapacityLimiter:
        """For parsing, hashing and writing what comes in."""
        return self._writing.setdefault(project_id, CapacityLimiter(_THREADS))

    def reading(self, project_id: str) -> CapacityLimiter:
        """For what takes long: looking at each line of a file, putting parts together."""
        return self._reading.setdefault(project_id, CapacityLimiter(_THREADS))

    def showing(self, project_id: str) -> CapacityLimiter:
        """For what the page shows: it reads run folders and many rows."""
        return self._showing.setdefault(project_id, CapacityLimiter(_THREADS))

    def testing(self, project_id: str) -> CapacityLimiter:
        """For samples that are sent to webhook endpoints, which may be slow to answer."""
        return self._testing.setdefault(project_id, CapacityLimiter(_THREADS))


async def workers_of(request: Request) -> Workers:
    """The workers of the app."""
    workers = request.app.state.workers
    assert isinstance(workers, Workers)
    return workers


Working = Annotated[Workers, Depends(workers_of)]


@contextlib.asynccontextmanager
async def received(
    request: Request, store: Store, project_id: str, part: str, limit: int
) -> AsyncIterator[tuple[Form, Incoming]]:
    """The whole form, its file `part` in the store but not kept.

    Raises `ApiError` 400 for a bad form and 413 for a file of more than `limit` bytes.
    """
    stated = request.headers.get("content-length", "")
    if stated.isdecimal() and int(stated) > limit + _MARGIN:
        raise _too_large(limit)
    async with contextmanager_in_threadpool(store.incoming()) as content:

        def sink(piece: bytes) -> None:
            if content.bytes + len(piece) > limit:
                raise _too_large(limit)
            content.write(piece)

        form = Form(request.headers.get("content-type", ""), part, sink)
        metrics = request.app.state.metrics
        writing = request.app.state.workers.writing(project_id)
        pending = bytearray()
        async for piece in request.stream():
            pending += piece
            if len(pending) >= _PIECE:
                await to_thread.run_sync(form.write, bytes(pending), limiter=writing)
                metrics.uploaded(len(pending))
                pending.clear()
        await to_thread.run_sync(form.write, bytes(pending), limiter=writing)
        metrics.uploaded(len(pending))
        form.finish()
        if form.filename is None:
            raise ApiError(400, f"'{part}' is a required property")
        yield form, content


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The file is too large: at most {limit:,} bytes are accepted.")
