"""Models that answer, a few in memory at a time: started when asked for, ended when idle."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from types import TracebackType

from launcher.api.service import Service
from launcher.api.talker import Failed as Failed
from launcher.api.talker import Line, Talker
from launcher.jobs.start import working_folder
from launcher.rundir import RunDir
from launcher.runtime import environment_without_ranks

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from: a job at a step (None: its export), or a base's overrides."""

    job: str | None = None
    step: int | None = None
    overrides: tuple[str, ...] = ()


@dataclass(eq=False, slots=True)
class _Place:
    """A model in memory, or on its way there."""

    start: asyncio.Task[Talker]
    users: int = 0
    is_idle: asyncio.Event = field(default_factory=asyncio.Event)
    timer: asyncio.TimerHandle | None = None


class Pool:
    """The models of a service, for `async with`; all end with the block."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._chat = service.site.chat
        # The one used longest ago stands first.
        self._places: dict[Source, _Place] = {}
        self._ending: dict[asyncio.Task[None], _Place] = {}
        self._making_room = asyncio.Lock()

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for source in list(self._places):
            self._places[source].start.cancel()
            self._remove(source)
        for place in self._ending.values():
            place.is_idle.set()  # whoever still listens is not waited for
        await asyncio.gather(*self._ending)

    async def ask(self, source: Source, request: Line) -> AsyncGenerator[Line, None]:
        """The lines of a model's answers, as `launcher.train.answering` writes them.

        Waits for the model to be opened, and before that for room. Raises `Failed`, the reason on
        stderr, if it cannot be opened or dies.
        """
        known = self._known(source)
        # It may have died unnoticed since the last question: then another answers.
        may_be_dead = known is not None and known.start.done()
        try:
            async with contextlib.aclosing(self._ask(source, request)) as lines:
                async for line in lines:
                    may_be_dead = False
                    yield line
            return
        except Failed:
            if not may_be_dead:
                raise
        async with contextlib.aclosing(self._ask(source, request)) as lines:
            async for line in lines:
                yield line

    async def _ask(self, source: Source, request: Line) -> AsyncGenerator[Line, None]:
        place = await self._take(source)
        try:
            talker = await asyncio.shield(place.start)
            async with contextlib.aclosing(talker.ask(request)) as lines:
                async for line in lines:
                    yield line
        except Failed as error:
            _LOG.error("model of %s: %s", source, error)
            if self._places.get(source) is place:
                self._remove(source)
            raise
        finally:
            self._leave(source, place)

    def forget(self, source: Source) -> None:
        """A model that is no more leaves memory."""
        if source in self._places:
            self._remove(source)

    async def _take(self, source: Source) -> _Place:
        place = self._known(source)
        if place is None:
            async with self._making_room:
                # Somebody else may have asked for it meanwhile.
                place = self._known(source)
                while place is None and len(self._places) >= self._chat.models:
                    await self._end_one()
                    place = self._known(source)
                if place is None:
                    place = _Place(asyncio.create_task(self._open(source)))
                    self._places[source] = place
        place.users += 1
        place.is_idle.clear()
        if place.timer is not None:
            place.timer.cancel()
        self._places[source] = self._places.pop(source)
        return place

    def _known(self, source: Source) -> _Place | None:
        place = self._places.get(source)
        if place is None or not place.start.done():
            return place
        if place.start.cancelled() or place.start.exception() or not place.start.result().is_alive:
            self._remove(source)
            return None
        return place

    def _leave(self, source: Source, place: _Place) -> None:
        place.users -= 1
        if not place.users:
            place.is_idle.set()
            if self._places.get(source) is place:
                loop = asyncio.get_running_loop()
                place.timer = loop.call_later(self._chat.idle_s, self.forget, source)

    async def _end_one(self) -> None:
        """End the idle model used longest ago; if none is idle, the first when its users are done,
        and nobody new gets at it before."""
        idle = (source for source, place in self._places.items() if not place.users)
        await self._remove(next(idle, next(iter(self._places))))

    def _remove(self, source: Source) -> asyncio.Task[None]:
        place = self._places.pop(source)
        if place.timer is not None:
            place.timer.cancel()
        ending = asyncio.create_task(_end(place))
        self._ending[ending] = place
        ending.add_done_callback(self._ending.pop)
        return ending

    async def _open(self, source: Source) -> Talker:
        words, cwd = ["--max-tokens", str(self._chat.max_tokens)], str(self._service.home)
        if source.job is None:
            own = self._service.home / "conf"
            words += ["--config-dir", str(own)] if own.is_dir() else []
            words += ["--overrides", *source.overrides]
        else:
            run = RunDir(self._service.runs / source.job)
            words = [str(run), *words]
            words += [] if source.step is None else ["--checkpoint", str(source.step)]
            cwd = str(working_folder(run))
        environment = environment_without_ranks()
        if not self._chat.gpus:
            environment["CUDA_VISIBLE_DEVICES"] = ""
        return await Talker.start(words, cwd, environment)


async def _end(place: _Place) -> None:
    if place.users:
        await place.is_idle.wait()
    with contextlib.suppress(Failed, asyncio.CancelledError):
        talker = await place.start
        await talker.stop()
