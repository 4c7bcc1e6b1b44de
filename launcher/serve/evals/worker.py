"""Works on runs of evals, inside a server: it asks the models and graders that clients ask too.

A run is one server's at a time, by a lease. A server that dies leaves rows from which another, or
the next one, goes on: items without a result are asked again, others never.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from launcher.core.errors import LauncherError
from launcher.serve import quota
from launcher.serve.chat import asking
from launcher.serve.chat.model_process import Died, Line
from launcher.serve.chat.pool import Failed, ModelPool
from launcher.serve.chat.responses import Answer
from launcher.serve.db.tables import Eval, EvalItem, EvalRun
from launcher.serve.evals import criteria, lines, rows, samples
from launcher.serve.evals.questions import Questions, Unaskable
from launcher.serve.evals.rows import LostRunError
from launcher.serve.files import project_files
from launcher.serve.grading.workers import Grading, turn_of_evals
from launcher.serve.http.failure import ApiError
from launcher.serve.jobs.ownership import Owner
from launcher.serve.service import Service

_LOG = logging.getLogger(__name__)
_LOOK_S = 1.0
#: Items of a run that are asked or graded at a time.
_AT_A_TIME = 4
#: Pause before a new try, longer each time, and tries that fail in a row: of an item, after which
#: it has no answer, or by a fault of the service, after which the run fails.
_RETRY_S, _MOST_TRIES = 2.0, 5
#: What is away, such as a model that cannot be opened, is tried again for so long, at least every:
_OUTAGE_S, _LONGEST_PAUSE_S = 24 * 3600.0, 300.0
#: HTTP statuses of questions that no other item would do better with.
_HOPELESS = (401, 403, 404)
_T = TypeVar("_T")


class RunFault(Exception):
    """The run cannot go on; `code` as clients see it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(slots=True)
class _Failing:
    """Tries of a run in a row that failed, and since when."""

    since: float
    count: int = 0


def pause_s(count: int) -> float:
    """Seconds before the next try, after so many that failed."""
    return float(min(_LONGEST_PAUSE_S, _RETRY_S * 2 ** min(count - 1, 20)))


class Runner:
    """Works until it is cancelled."""

    def __init__(self, service: Service, pool: ModelPool, grading: Grading) -> None:
        self._service, self._pool, self._grading = service, pool, grading
        self._owner = Owner.here()
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._failures: dict[str, _Failing] = {}
        self._not_before: dict[str, float] = {}
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """There is a run to be taken, or one to be left: look at once."""
        self._woken.set()

    async def run(self) -> None:
        """Take runs and work on them; at the end they are left to others."""
        try:
            while True:
                try:
                    await self._look()
                except (SQLAlchemyError, OSError) as error:
                    _LOG.error("evals: %s; it is tried again", error)
                waiting = asyncio.create_task(self._woken.wait())
                awaited = {waiting, *self._tasks.values()}
                await asyncio.wait(awaited, timeout=_LOOK_S, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()
                self._woken.clear()
        finally:
            await self._stop()

    async def _stop(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        with contextlib.suppress(SQLAlchemyError, OSError):
            await asyncio.to_thread(rows.give_back, self._service.database, self._owner)

    async def _look(self) -> None:
        ids = await asyncio.to_thread(rows.claim, self._service.database, self._owner)
        for run_id, task in list(self._tasks.items()):
            if task.done():
                del self._tasks[run_id]
            elif run_id not in ids:  # canceled, deleted, or taken by another
                task.cancel()
        for run_id in ids:
            if run_id not in self._tasks and self._not_before.get(run_id, 0) <= time.monotonic():
                self._tasks[run_id] = asyncio.create_task(self._guarded(run_id))
        self._not_before = {name: at for name, at in self._not_before.items() if name in ids}
        self._failures = {name: one for name, one in self._failures.items() if name in ids}

    async def _guarded(self, run_id: str) -> None:
        work = _Run(self._service, self._pool, self._grading, self._owner, run_id)
        try:
            await work.go()
        except LostRunError:
            pass
        except RunFault as fault:
            await self._fail(run_id, fault.code, str(fault))
        except ApiError as error:  # as of a schema that takes too long
            await self._fail(run_id, error.code or "invalid_request", error.message)
        except (Failed, LauncherError, OSError, SQLAlchemyError) as error:
            _LOG.error("run %s: %s; it is tried again", run_id, error)
            said = "The service could not go on: its operator's log says why."
            failing = self._again(run_id, moved=work.has_settled)
            if time.monotonic() - failing.since >= _OUTAGE_S:
                await self._fail(run_id, "server_error", said)
        except Exception:
            _LOG.exception("run %s: a fault of the service", run_id)
            failing = self._again(run_id, moved=work.has_settled)
            if failing.count >= _MOST_TRIES:
                await self._fail(run_id, "server_error", "A fault of the service.")

    def _again(self, run_id: str, *, moved: bool) -> _Failing:
        now = time.monotonic()
        failing = _Failing(now) if moved else self._failures.get(run_id, _Failing(now))
        self._failures[run_id] = failing
        failing.count += 1
        self._not_before[run_id] = now + pause_s(failing.count)
        return failing

    async def _fail(self, run_id: str, code: str, said: str) -> None:
        def end() -> None:
            with rows.owned(self._service.database, self._owner, run_id) as (session, run):
                rows.end(session, run, rows.FAILED, (code, said))

        try:
            await asyncio.to_thread(end)
        except LostRunError:
            pass
        except SQLAlchemyError as error:
            _LOG.error("run %s: %s; it is tried again", run_id, error)


class _Run:
    """One run, from where it stands to its end."""

    def __init__(
        self, service: Service, pool: ModelPool, grading: Grading, owner: Owner, run_id: str
    ) -> None:
        self._service, self._pool, self._grading = service, pool, grading
        self._database = service.database
        self._owned = functools.partial(rows.owned, service.database, owner, run_id)
        self.has_settled = False
        """Whether any item has got its result."""
        self._alone = asyncio.Lock()

    async def go(self) -> None:
        """Read the items, ask and grade them; raises `RunFault` if that is of no use."""
        self._run, self._eval = await asyncio.to_thread(self._load)
        # A turn of its own: the project's chats do not wait behind its evals.
        self._turn = turn_of_evals(self._run.project_id)
        self._questions: Questions | None = None
        if self._run.source["type"] != "jsonl":
            try:
                site = self._service.site
                self._questions = await asyncio.to_thread(
                    Questions, self._run.source, site.chat.max_tokens, site.limits.body_bytes
                )
            except ApiError as error:  # what the site allows has changed
                raise RunFault(error.code or "invalid_request", error.message) from error
        if self._run.state == rows.QUEUED:
            await self._prepare()
        await self._work()
        await asyncio.to_thread(self._complete)

    def _load(self) -> tuple[EvalRun, Eval]:
        with self._owned() as (session, run):
            session.refresh(run, ["source"])
            return run, session.scalars(select(Eval).where(Eval.id == run.eval_id)).one()

    # ---- its items

    async def _prepare(self) -> None:
        source, faults, total = self._run.source["source"], lines.ItemFaults(), 0
        if source["type"] == "file_content":
            parts: Any = iter([lines.of_request(source["content"], faults)])
            total = await self._keep(parts, faults)
        else:
            try:
                sha256, bare = await asyncio.to_thread(self._file, source["id"])
            except ApiError as error:
                raise RunFault("file_not_found", error.message) from error
            with self._service.store.open(sha256) as content:
                most = self._service.site.limits.line_bytes
                total = await self._keep(
                    lines.chunks(content, most, bare=bare, faults=faults), faults
                )
        if faults.text:
            raise RunFault("invalid_file_format", faults.text)
        if not total:
            raise RunFault("invalid_file_format", "The file has no items.")
        await asyncio.to_thread(self._begin, total)

    async def _keep(self, parts: Any, faults: lines.ItemFaults) -> int:
        total, schema = 0, self._eval.source["item_schema"]
        needs_samples = self._questions is None and self._eval.source.get("include_sample_schema")
        while (part := await asyncio.to_thread(next, parts, None)) is not None:
            await self._checked(schema, part, faults)
            if needs_samples:
                lines.require_samples(part, faults)
            if total + len(part) > lines.MOST_ITEMS:
                found = f"A run has at most {lines.MOST_ITEMS:,} items."
                raise RunFault("invalid_file_format", found)
            if part and not faults.text:
                await asyncio.to_thread(self._add, total, part)
            total += len(part)
        return total

    async def _checked(
        self, schema: dict[str, Any], part: Sequence[lines.Read], faults: lines.ItemFaults
    ) -> None:
        for one in lines.parts(part):

            async def check(one: Sequence[lines.Read] = one) -> None:
                await lines.check(self._grading, self._turn, schema, one, faults)

            await _with_patience(check)

    def _file(self, file_id: str) -> tuple[str, bool]:
        with self._database.read() as session:
            found = project_files.find(session, self._run.project_id, file_id)
            return found.sha256, found.purpose == project_files.TRAINING

    def _add(self, first: int, part: Sequence[lines.Read]) -> None:
        with self._owned() as (session, run):
            more = rows.add_items(session, run, first, [(one.item, one.sample) for one in part])
            self._require_room(session, more)

    def _require_room(self, session: Session, more: int) -> None:
        """`ApiError` 429, and nothing of the transaction stays, beyond the project's quota."""
        session.flush()
        quota.require_room(session, self._service.site, self._run.project_id, more, is_in=True)

    def _begin(self, total: int) -> None:
        with self._owned() as (session, run):
            rows.begin(session, run, total, [one["name"] for one in self._eval.criteria])

    # ---- asking and grading

    async def _work(self) -> None:
        last, tasks = -1, set[asyncio.Task[None]]()
        try:
            while True:
                free = _AT_A_TIME - len(tasks)
                found = await asyncio.to_thread(self._pending, last, free) if free else []
                for item in found:
                    last = item.place
                    tasks.add(asyncio.create_task(self._item(item)))
                if not tasks:
                    return
                done, tasks = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                _raise_first(done)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _pending(self, after: int, most: int) -> list[EvalItem]:
        with self._database.read() as session:
            return rows.pending(session, self._run.id, after, most)

    async def _item(self, item: EvalItem) -> None:
        usage: dict[str, dict[str, int]] = {}
        answer, sample = item.given, samples.given(item.given)
        results: list[dict[str, Any]] = []
        try:
            if self._questions is not None:
                sample, answer = await self._answer(self._questions, item.item)
                samples.add_usage(usage, self._run.model, sample["usage"])
        except samples.NoAnswer as error:
            sample = error.sample
        else:
            for criterion in self._eval.criteria:
                results.append(await self._graded(criterion, item.item, answer, usage))
        await asyncio.to_thread(self._settle, item, sample, results, usage)

    async def _answer(
        self, questions: Questions, item: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The sample as clients see it, and as graders read it."""
        model = self._run.model
        try:
            question = await asyncio.to_thread(questions.of, item)
        except Unaskable as error:
            raise samples.NoAnswer(samples.failed({}, model, error.code, str(error))) from error
        about = questions.about(question)
        try:
            body = await self._asked(question.wanted)
        except ApiError as error:
            if error.status in _HOPELESS:
                raise RunFault(error.code or "model_not_found", error.message) from error
            code = error.code or "invalid_request"
            raise samples.NoAnswer(samples.failed(about, model, code, error.message)) from error
        return samples.answered(about, body)

    async def _asked(self, wanted: Line) -> dict[str, Any]:
        """The model's answer. What it fails at, or dies of, is asked again, one item at a time, so
        that none fails by another's fault; `ApiError` 503 after the last try."""
        model, project_id = self._run.model, self._run.project_id

        async def ask() -> dict[str, Any]:
            telling = Answer(model, 1, is_chat=True)
            return await asking.told(
                *(self._pool, self._service, project_id, model, wanted, telling, self._turn)
            )

        with contextlib.suppress(_Unanswered):
            return await _once(ask)
        async with self._alone:
            for count in range(1, _MOST_TRIES):
                await asyncio.sleep(_RETRY_S * count)
                with contextlib.suppress(_Unanswered):
                    return await _once(ask)
        said = f"The model has failed at this {_MOST_TRIES} times."
        raise ApiError(503, said, code="server_error")

    async def _graded(
        self,
        criterion: dict[str, Any],
        item: dict[str, Any],
        answer: dict[str, Any] | None,
        usage: dict[str, dict[str, int]],
    ) -> dict[str, Any]:
        """The result as clients see it."""

        async def grade() -> dict[str, Any]:
            wire = criteria.grader_of(criterion)
            return await self._grading.run(self._turn, wire, item, answer or "", is_criterion=True)

        try:
            found = await _with_patience(grade)
        except ApiError as error:
            said = f"The criterion '{criterion['name']}' can grade nothing: {error.message}"
            raise RunFault(error.code or "invalid_grader", said) from error
        for name, used in found["usage"].items():
            samples.add_usage(usage, name, used)
        return criteria.result(criterion, found)

    def _settle(
        self,
        item: EvalItem,
        sample: dict[str, Any] | None,
        results: Sequence[dict[str, Any]],
        usage: dict[str, dict[str, int]],
    ) -> None:
        with self._owned() as (session, run):
            more = rows.settle(session, run, item.id, sample, results, usage)
            self._require_room(session, more)
        self.has_settled = True

    def _complete(self) -> None:
        with self._owned() as (session, run):
            rows.end(session, run, rows.COMPLETED)


class _Unanswered(Exception):
    """The model has failed at a question."""


async def _once(ask: Callable[[], Awaitable[_T]]) -> _T:
    """The answer; `_Unanswered` if the model fails at it, or dies."""
    try:
        return await _with_patience(ask)
    except Died as error:
        raise _Unanswered from error
    except ApiError as error:
        if error.status >= 500:
            raise _Unanswered from error
        raise


async def _with_patience(work: Callable[[], Awaitable[_T]]) -> _T:
    """What comes of it; while too much waits before it, it is tried again."""
    while True:
        try:
            return await work()
        except ApiError as error:
            if error.status != 429:
                raise
        await asyncio.sleep(_RETRY_S)


def _raise_first(done: Iterable[asyncio.Task[None]]) -> None:
    """Raise what ended one of the tasks: what no other try does better with before all else."""
    faults = [error for task in done if (error := task.exception()) is not None]
    if faults:
        raise min(faults, key=lambda error: not isinstance(error, RunFault | LostRunError))
