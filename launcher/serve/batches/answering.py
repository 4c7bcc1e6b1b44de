"""The requests of one batch, answered a few at a time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from launcher.core.fairness import TurnLock
from launcher.serve.batches import journal, lines
from launcher.serve.batches.asking import Ask, Reply
from launcher.serve.batches.journal import AnswerJournal, Noted, Tally
from launcher.serve.batches.lines import BatchRequest, Requests, StoppedError
from launcher.serve.batches.steps import told
from launcher.serve.chat.responses import unavailable
from launcher.serve.db.tables import Batch
from launcher.serve.http.access import Caller
from launcher.serve.service import Service

_LOG = logging.getLogger(__name__)
#: Seconds until what cannot be answered at present is asked again; each pause is twice as long.
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0
#: Answers that a later try may have otherwise: that too much is asked at present, and failures.
_BUSY, _FAILING = 429, (500, 503)
#: How often a request may fail while its model answers others.
_MOST_OWN = 3


@dataclass(slots=True)
class _Standing:
    """How a model does, as far as one batch knows."""

    answered: int = 0
    since: float | None = None
    """When it failed first since its last answer."""
    is_lost: bool = False
    """It could not answer for too long: nothing waits for it any more."""
    again: asyncio.Lock = field(default_factory=asyncio.Lock)
    """What has failed is asked again one at a time: whichever kills the model is found alone."""


class OpenBatch:
    """A batch under way."""

    def __init__(
        self, service: Service, ask: Ask, turns: TurnLock, batch: Batch, project: str
    ) -> None:
        """`turns` is what all batches share; `project` the name of the batch's."""
        self.batch = batch
        self.tally = Tally(batch.completed, batch.failed, batch.input_tokens, batch.output_tokens)
        self.stopping = asyncio.Event()
        self._service, self._ask, self._turns = service, ask, turns
        self._caller = Caller(batch.project_id, batch.id, None, project)
        #: Set, what a thread does for the batch comes to an end.
        self.halt = threading.Event()
        #: Answers that have been added.
        self.added = 0
        self._models: dict[str | None, _Standing] = defaultdict(_Standing)
        self._working = self._asleep = 0

    @property
    def is_asleep(self) -> bool:
        """Whether all that is under way waits until it is asked again."""
        return 0 < self._working == self._asleep

    def _going_on(self) -> None:
        if self.halt.is_set():
            raise StoppedError

    async def run(self) -> None:
        """Answer what is not answered yet, until `stopping` is set.

        Raises `StorageError` if answers cannot be kept: nothing is lost then.
        """
        folder = self._service.batches / self.batch.id
        noted = await asyncio.to_thread(journal.noted, folder, self._going_on)
        self.tally = Tally()
        for answer in noted.values():
            self.tally.add(answer)
        left = iter([number for number in range(self.batch.total) if number not in noted])
        requests = await asyncio.to_thread(lines.Requests, folder / journal.REQUESTS)
        kept = AnswerJournal(folder, self.batch.claims)
        many = self._service.site.batches.concurrency
        with contextlib.closing(requests), contextlib.closing(kept):
            stop = asyncio.create_task(self.stopping.wait())
            at_work = [asyncio.create_task(self._answer(left, requests, kept)) for _ in range(many)]
            try:
                pending: set[asyncio.Task[Any]] = {*at_work}
                while pending and not stop.done():
                    ended, pending = await asyncio.wait(
                        {stop, *pending}, return_when=asyncio.FIRST_COMPLETED
                    )
                    pending.discard(stop)
                    for task in ended - {stop}:
                        task.result()
            finally:
                for task in (stop, *at_work):
                    task.cancel()
                await asyncio.gather(stop, *at_work, return_exceptions=True)

    async def _answer(self, left: Iterator[int], requests: Requests, kept: AnswerJournal) -> None:
        """Answer one request after another; several do at a time."""
        self._working += 1
        try:
            for number in left:
                request = await asyncio.to_thread(requests.of, number)
                reply = await self._replied(request)
                # Nothing is waited for from here on: what has been answered is kept.
                self.tally.add(_keep(kept, number, request, reply))
                self.added += 1
        finally:
            self._working -= 1

    async def _replied(self, request: BatchRequest) -> Reply:
        """The answer. Where too much is asked at present it is waited for; where the model or the
        service fails, for so long as the site has patience; where the model answers others
        meanwhile, the request has a few tries."""
        model = self._models[request.model]
        patience_s = self._service.site.batches.patience_s
        pause_s, since, own, answered = _FIRST_PAUSE_S, None, 0, model.answered
        while True:
            reply = await self._asked(request, model if since is not None else None)
            if reply.status == 200:
                model.answered += 1
                model.since, model.is_lost = None, False
            if reply.status == _BUSY:
                model.since = since = None
            elif reply.status not in _FAILING:
                return reply
            else:
                at = time.monotonic()
                since = at if since is None else since
                is_late = at + pause_s > since + patience_s
                if _is_models(reply):
                    own += model.answered > answered
                    answered = model.answered
                    model.since = at if model.since is None else model.since
                    is_late = at + pause_s > model.since + patience_s
                    model.is_lost = model.is_lost or is_late
                    is_late = model.is_lost
                if is_late or own >= _MOST_OWN:
                    return reply
            _LOG.info("batch %s: HTTP %d, asked again", self.batch.id, reply.status)
            await self._pause(max(pause_s, _wished_s(reply)))
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _asked(self, request: BatchRequest, again: _Standing | None) -> Reply:
        async with contextlib.AsyncExitStack() as stack:
            if again is not None:
                await stack.enter_async_context(again.again)
            await stack.enter_async_context(self._turns.held(self.batch.project_id))
            return await self._ask(self._caller, self.batch.endpoint, request.body)

    async def _pause(self, seconds: float) -> None:
        self._asleep += 1
        try:
            await asyncio.sleep(seconds)
        finally:
            self._asleep -= 1


def _wished_s(reply: Reply) -> float:
    """Seconds that the service asks to wait, which are none without limit."""
    wished = reply.headers.get("retry-after", "")
    return min(float(wished), _LONGEST_PAUSE_S) if wished.isdecimal() else 0.0


def _is_models(reply: Reply) -> bool:
    """Whether it is the model that cannot answer, and not the service, whose database is away."""
    said = json.loads(reply.body)
    return reply.status == 500 or said["error"]["code"] == unavailable().code


def _keep(kept: AnswerJournal, number: int, request: BatchRequest, reply: Reply) -> Noted:
    body = json.loads(reply.body)
    response = {
        "status_code": reply.status,
        "request_id": reply.headers["x-request-id"],
        "body": body,
    }
    is_ok = reply.status == 200
    tokens = _tokens(body) if is_ok else (0, 0)
    return kept.add(number, told(request.custom_id, response), is_ok=is_ok, tokens=tokens)


def _tokens(body: dict[str, Any]) -> tuple[int, int]:
    """Read and written, whichever endpoint says so."""
    usage = body.get("usage") or {}
    read = usage.get("input_tokens", usage.get("prompt_tokens", 0))
    return read, usage.get("output_tokens", usage.get("completion_tokens", 0))
