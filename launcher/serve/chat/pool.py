"""Models that answer, a few in memory at a time: started when asked for, ended when idle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from types import TracebackType

from launcher.core.fairness import TurnLock
from launcher.serve.chat.engines import ModelSource as ModelSource
from launcher.serve.chat.engines import Seat, engine_of
from launcher.serve.chat.model_process import Failed as Failed
from launcher.serve.chat.model_process import HandedBack, Line, Talker
from launcher.serve.http.failure import ApiError
from launcher.serve.service import Service

#: A model that others need the room of answers for so long at least, once it is open.
_LEAST_S = 10.0
#: Questions of a project that wait are in memory, so large in all.
_MOST_BYTES = 64 << 20
#: Seconds after which a client with too many questions may ask again.
_RETRY_S = 2
_LOG = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class _Place:
    """A model in memory, or on its way there."""

    start: asyncio.Task[Talker]
    users: int = 0
    is_idle: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None


class ModelPool:
    """The models of a service, for `async with`; all end with the block."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._chat = service.site.chat
        self._engine = engine_of(service)
        # The one used longest ago stands first.
        self._places: dict[Seat, _Place] = {}
        self._ending: dict[asyncio.Task[None], _Place] = {}
        self._making_room = TurnLock()
        self._asked: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()

    async def __aenter__(self) -> ModelPool:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for seat in list(self._places):
            self._places[seat].start.cancel()
            self._remove(seat)
        for place in self._ending.values():
            place.is_idle.set()  # whoever still listens is not waited for
        await asyncio.gather(*self._ending)

    async def ask(
        self,
        source: ModelSource,
        request: Line,
        project: str = "",
        most: int | None = None,
        size: int = 0,
    ) -> AsyncGenerator[Line, None]:
        """The lines of a model's answers, as `launcher.inference.worker` writes them.

        Waits for the model to be opened, and before that for room; questions of several projects
        take turns at both, and at being answered. Raises `Failed`, the reason on stderr, if it
        cannot be opened or dies, and `ApiError` 429 if the project has `most` questions open, or
        large ones: this one has `size` bytes.
        """
        held = self._bytes[project]
        if most is not None and self._asked[project] >= most:
            raise _too_many(f"{most} questions")
        if held and held + size > _MOST_BYTES:
            raise _too_many(f"questions of {held:,} bytes")
        self._asked[project] += 1
        self._bytes[project] += size
        try:
            async with contextlib.aclosing(self._ask(source, request, project)) as lines:
                async for line in lines:
                    yield line
        finally:
            self._asked[project] -= 1
            self._bytes[project] -= size
            self._asked += Counter()  # nothing is kept of a project that asks no more
            self._bytes += Counter()

    async def _ask(
        self, source: ModelSource, request: Line, project: str
    ) -> AsyncGenerator[Line, None]:
        seat = await self._engine.seat(source)
        known = self._known(seat)
        # It may have died unnoticed since the last question: then another answers.
        may_be_dead = known is not None and known.start.done()
        request = self._engine.request(source, {**request, "project": project})
        while True:
            try:
                async with contextlib.aclosing(self._try(seat, source, request, project)) as lines:
                    async for line in lines:
                        may_be_dead = False
                        yield line
                return
            except HandedBack:
                continue
            except Failed:
                if not may_be_dead:
                    raise
                may_be_dead = False

    async def _try(
        self, seat: Seat, source: ModelSource, request: Line, project: str
    ) -> AsyncGenerator[Line, None]:
        place = await self._take(seat, source, project)
        try:
            talker = await asyncio.shield(place.start)
            async with contextlib.aclosing(talker.ask(request)) as lines:
                async for line in lines:
                    yield line
        except Failed as error:
            _LOG.error("model of %s: %s", source, error)
            if self._places.get(seat) is place:
                self._remove(seat)
            raise
        finally:
            self._leave(seat, place)

    def forget(self, source: ModelSource) -> None:
        """A model that is no more leaves memory."""
        for seat in self._engine.seats(source):
            place = self._places.get(seat)
            if place is None:
                continue
            line = self._engine.farewell(seat, source)
            if line is None:
                self._remove(seat)
            elif self._is_open(place):
                place.start.result().tell(line)

    async def _take(self, seat: Seat, source: ModelSource, project: str) -> _Place:
        place = self._known(seat)
        if place is None:
            async with self._making_room.held(project):
                # Somebody else may have asked for it meanwhile.
                place = self._known(seat)
                while place is None and self._is_full:
                    await self._end_one()
                    place = self._known(seat)
                if place is None:
                    place = _Place(asyncio.create_task(self._engine.open(seat, source)))
                    self._places[seat] = place
        place.users += 1
        place.is_idle.clear()
        if place.timer is not None:
            place.timer.cancel()
        self._places[seat] = self._places.pop(seat)
        return place

    def _known(self, seat: Seat) -> _Place | None:
        place = self._places.get(seat)
        if place is None or not place.start.done():
            return place
        if not self._is_open(place):
            self._remove(seat)
            return None
        return place

    def _is_open(self, place: _Place) -> bool:
        start = place.start
        is_there = start.done() and not start.cancelled() and not start.exception()
        return is_there and start.result().is_alive

    def _leave(self, seat: Seat, place: _Place) -> None:
        place.users -= 1
        if not place.users:
            place.is_idle.set()
            if self._places.get(seat) is place:
                loop = asyncio.get_running_loop()
                place.timer = loop.call_later(self._chat.idle_s, self._remove, seat)

    async def _end_one(self) -> None:
        """End the idle model used longest ago; if none is idle, the first as soon as what it has
        begun is answered. Nobody new gets at it before, and who still waits comes back for room."""
        if len(self._places) < self._chat.models:
            await asyncio.wait([*self._ending], return_when=asyncio.FIRST_COMPLETED)
            return
        idle = (seat for seat, place in self._places.items() if not place.users)
        # Shielded: it ends also if who waits for its room goes away.
        await asyncio.shield(self._remove(next(idle, next(iter(self._places))), for_room=True))

    @property
    def _is_full(self) -> bool:
        """Whether there is no room for another model; one that ends is there until it has."""
        return len(self._places) + len(self._ending) >= self._chat.models

    def _remove(self, seat: Seat, *, for_room: bool = False) -> asyncio.Task[None]:
        place = self._places.pop(seat)
        if place.timer is not None:
            place.timer.cancel()
        ending = asyncio.create_task(_end(place, for_room))
        self._ending[ending] = place
        ending.add_done_callback(self._ending.pop)
        return ending


async def _end(place: _Place, for_room: bool) -> None:
    with contextlib.suppress(Failed, asyncio.CancelledError):
        if place.users and for_room:
            talker = await asyncio.shield(place.start)
            # Or two models would make room for each other for ever.
            await _first_of(place.is_idle, talker.has_begun)
            left_s = talker.since + _LEAST_S - time.monotonic()
            await _first_of(place.is_idle, within_s=max(0.0, left_s))
            talker.hand_back()
    if place.users:
        await place.is_idle.wait()
    with contextlib.suppress(Failed, asyncio.CancelledError):
        talker = await place.start
        await talker.stop()


async def _first_of(*events: asyncio.Event, within_s: float | None = None) -> None:
    tasks = [asyncio.create_task(event.wait()) for event in events]
    await asyncio.wait(tasks, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def _too_many(what: str) -> ApiError:
    return ApiError(
        429,
        f"Rate limit reached: {what} of the project wait for their answers."
        " Try again when one has come.",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(_RETRY_S)},
    )
