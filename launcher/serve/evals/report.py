"""The page about a run for people: how sure each criterion's numbers are, and what was answered.

It is opened by a link of its own, since a browser sends no key.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from sqlalchemy import select

from launcher import entry
from launcher.core.files import write_atomic
from launcher.core.processes import end_with_parent
from launcher.core.runtime import environment_without_ranks
from launcher.serve.db.tables import Eval, EvalItem, EvalRun
from launcher.serve.evals import criteria, rows
from launcher.serve.http import links
from launcher.serve.http.failure import ApiError
from launcher.serve.service import Service

_LOG = logging.getLogger(__name__)
_PURPOSE = "eval-report"
#: A link stays the same for so long, and is good for a day at least.
_PERIOD_S, _LEAST_S = 30 * 24 * 3600, 24 * 3600
#: Answers that a page shows, and characters of each text on it.
_SHOWN, _LONGEST = 100, 4000
#: Pages that are made at a time, for how long one may be made, and how old that of a run that has
#: not ended may get before it is made again.
_AT_A_TIME, _WITHIN_S, _FRESH_S = 2, 120.0, 5.0
#: Rows that are held at a time: each may have megabytes.
_ROWS = 20


def path(service: Service, run: EvalRun) -> str:
    """Where the page of a run is, below the service's address."""
    age = time.time() + _LEAST_S - run.created_at
    until = run.created_at + _PERIOD_S * (int(age // _PERIOD_S) + 1)
    secret = links.secret_of(service.home)
    return f"reports/evals/{links.signed((_PURPOSE, run.id), until, secret)}"


def read(link: str, secret: bytes) -> str | None:
    """The run whose page a link opens; None if it is not good."""
    words = links.read(link, secret, 2)
    return words[1] if words and words[0] == _PURPOSE else None


def forget(service: Service, run_id: str) -> None:
    """A run is gone: its page too."""
    shutil.rmtree(_folder(service, run_id), ignore_errors=True)


class Reports:
    """Pages of runs: made when looked at, of runs that have ended once."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._turn = asyncio.Semaphore(_AT_A_TIME)

    async def page(self, run_id: str) -> Path | None:
        """The page's file; None if there is no such run. `ApiError` 503 if it cannot be made: why
        is on stderr."""
        lock = self._locks.setdefault(run_id, asyncio.Lock())
        async with lock:
            state = await asyncio.to_thread(self._state, run_id)
            if state is None:
                return None
            folder = _folder(self._service, run_id)
            # By a name of its own: a page from before its end is never that of a run's end.
            page = folder / ("interim.html" if state in rows.OPEN else "report.html")
            if not _is_good(page, for_ever=state not in rows.OPEN):
                async with self._turn:
                    page = await self._made(run_id) or page
            if await asyncio.to_thread(self._state, run_id) is None:  # deleted meanwhile
                await asyncio.to_thread(forget, self._service, run_id)
                return None
        if not page.is_file():
            raise ApiError(503, "The page cannot be made at present.", code="page_unavailable")
        return page

    def _state(self, run_id: str) -> str | None:
        with self._service.database.read() as session:
            return session.scalar(select(EvalRun.state).where(EvalRun.id == run_id))

    async def _made(self, run_id: str) -> Path | None:
        """The page of what is there by now; None if there is no run any more."""
        found = await asyncio.to_thread(self._collect, run_id)
        if found is None:
            return None
        folder = _folder(self._service, run_id)
        page = folder / ("report.html" if found["has_ended"] else "interim.html")
        await asyncio.to_thread(_keep, folder / "results.json", found)
        await self._make(page)
        return page

    def _collect(self, run_id: str) -> dict[str, Any] | None:
        with self._service.database.read() as session:
            both = select(EvalRun, Eval).join(Eval, Eval.id == EvalRun.eval_id)
            row = session.execute(both.where(EvalRun.id == run_id)).first()
            if row is None:
                return None
            run, own = row
            items = (EvalItem.run_id == run_id, EvalItem.state != rows.PENDING)
            results = select(EvalItem.results).where(*items).order_by(EvalItem.place)
            few = {"yield_per": _ROWS}
            scores, unanswered = _scores(session.scalars(results.execution_options(**few)))
            worst = select(EvalItem).where(*items).order_by(EvalItem.state, EvalItem.place)
            listed = session.scalars(worst.limit(_SHOWN).execution_options(yield_per=1))
            shown = [_shown(item) for item in listed]
        for one in own.criteria:
            measured = scores.setdefault(one["name"], {"scores": [], "passed": [], "errored": 0})
            measured["errored"] += unanswered
        return {
            "eval": own.name,
            "run": run.name,
            "model": run.model,
            "state": run.state,
            "error": run.error,
            "has_ended": run.state not in rows.OPEN,
            "counts": run.counts,
            "usage": run.usage,
            "criteria": [
                {
                    "name": one["name"],
                    "type": one["type"],
                    "threshold": criteria.threshold_of(one),
                    **scores[one["name"]],
                }
                for one in own.criteria
            ],
            "answers": shown,
        }

    async def _make(self, page: Path) -> None:
        process = await asyncio.create_subprocess_exec(
            *entry.command("launcher.scoring.criteria", str(page.with_name("results.json"))),
            *("--out", str(page)),
            env=environment_without_ranks(),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            preexec_fn=end_with_parent(),
        )
        try:
            await asyncio.wait_for(process.wait(), _WITHIN_S)
        except asyncio.TimeoutError:
            _LOG.error("the page %s was not made within %.0f s", page, _WITHIN_S)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


def _is_good(page: Path, *, for_ever: bool) -> bool:
    """Whether a page may be shown as it is."""
    try:
        made_at = page.stat().st_mtime
    except OSError:
        return False
    return for_ever or 0 <= time.time() - made_at < _FRESH_S


def _scores(results: Iterable[list[dict[str, Any]]]) -> tuple[dict[str, dict[str, Any]], int]:
    """Name of a criterion -> scores and verdicts, of items, and how many it could not grade; and
    the number of items that were not answered, which no criterion has seen."""
    found: dict[str, dict[str, Any]] = {}
    unanswered = 0
    for of_item in results:
        unanswered += not of_item
        for one in of_item:
            own = found.setdefault(one["name"], {"scores": [], "passed": [], "errored": 0})
            if one["status"] == "error":
                own["errored"] += 1
            else:
                own["scores"].append(one["score"])
                own["passed"].append(one["passed"])
    return found, unanswered


def _shown(item: EvalItem) -> dict[str, Any]:
    sample = item.sample or {}
    output = sample.get("output") or [{}]
    error = sample.get("error") or {}
    return {
        "place": item.place,
        "state": item.state,
        "item": json.dumps(item.item, ensure_ascii=False, indent=1)[:_LONGEST],
        "answer": str(output[-1].get("content", ""))[:_LONGEST],
        "error": str(error.get("message", ""))[:_LONGEST],
        "results": [
            {name: one[name] for name in ("name", "score", "status")} for one in item.results
        ],
    }


def _keep(path: Path, found: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(found).encode())


def _folder(service: Service, run_id: str) -> Path:
    return service.home / "reports" / run_id
