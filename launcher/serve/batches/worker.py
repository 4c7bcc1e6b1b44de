"""What works on batches, in each server: any number of servers may work on one database.

A server may die at any instant; whoever comes next goes on from the rows and the folders.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from launcher.core.errors import LauncherError
from launcher.core.fairness import TurnLock, TurnThreads
from launcher.core.files import too_many_processes
from launcher.serve.batches import claims, steps
from launcher.serve.batches.answering import OpenBatch
from launcher.serve.batches.asking import Ask
from launcher.serve.batches.claims import LostBatchError
from launcher.serve.batches.lines import StoppedError
from launcher.serve.db.database import AWAY
from launcher.serve.db.tables import BatchState
from launcher.serve.jobs.ownership import Owner
from launcher.serve.service import Service

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S = 0.5
_RETRY_S = 10.0
#: A fault of ours may pass; one that stays must not keep a batch for ever.
_MOST_FAULTS = 5
_TRY_AGAIN = (LauncherError, OSError, MemoryError, *AWAY)
#: Batches of all, and of a project, whose files are read or made at a time.
_THREADS, _OF_PROJECT = 4, 2
_SWEEP_EVERY_S = 3600.0

Done = TypeVar("Done")


class BatchWorker:
    """Works until it is stopped."""

    def __init__(self, service: Service, ask: Ask) -> None:
        self._service, self._ask = service, ask
        self._owner = Owner.here()
        self._turns = TurnLock(service.site.batches.concurrency)
        self._held: dict[str, OpenBatch] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._not_before: dict[str, float] = {}
        self._faults: Counter[str] = Counter()
        self._wake, self._is_stopping = asyncio.Event(), False
        self._swept_at: float | None = None
        # However long files take, leases are renewed and answers go on.
        self._long = TurnThreads(_THREADS, "batches", _OF_PROJECT)
        self._short = ThreadPoolExecutor(2, "batches' rows")

    def stop(self) -> None:
        """Begin nothing more, and end what is under way: whoever comes next goes on with it."""
        self._is_stopping = True
        for one in self._held.values():
            one.halt.set()
        self._wake.set()

    async def run(self) -> None:
        """Work until `stop`."""
        while not self._is_stopping:
            try:
                await self._sweep()
                await self._look()
            except _TRY_AGAIN as error:
                _LOG.error("batches: %s; it is tried again", error)
            except Exception:
                _LOG.exception("batches: a fault of the service; it is tried again")
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), _LOOK_EVERY_S)
            self._wake.clear()
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        self._long.close()
        self._short.shutdown(wait=False)

    async def _sweep(self) -> None:
        at = time.monotonic()
        if self._swept_at is None or at >= self._swept_at + _SWEEP_EVERY_S:
            await self._soon(lambda: steps.sweep(self._service))
            self._swept_at = at

    async def _soon(self, work: Callable[[], Done]) -> Done:
        """What `work` returns, which takes little time."""
        return await asyncio.get_running_loop().run_in_executor(self._short, work)

    async def _at_length(self, one: OpenBatch, work: Callable[[], None]) -> None:
        """Do `work` in its turn. It has ended in any case before its batch is anyone else's."""
        done = self._long.submit(one.batch.project_id, work)
        under_way = asyncio.wrap_future(done)
        try:
            await asyncio.shield(under_way)
        except asyncio.CancelledError:
            one.halt.set()
            if not done.cancel():  # it has begun
                await asyncio.wait([under_way])
                under_way.exception()  # is told to nobody
            raise

    async def _look(self) -> None:
        database, owner = self._service.database, self._owner
        if self._held:
            tallies = {name: one.tally for name, one in self._held.items()}
            kept = await self._soon(lambda: claims.kept(database, owner, tallies))
            for name in tallies.keys() & self._held.keys():
                if name not in kept:
                    self._tasks[name].cancel()
                elif claims.is_due(kept[name]):
                    self._held[name].stopping.set()
        at = time.monotonic()
        waiting = [name for name, until in self._not_before.items() if until > at]
        held = {name: one.batch for name, one in self._held.items()}
        asleep = [name for name, one in self._held.items() if one.is_asleep]
        found = await self._soon(lambda: claims.claim(database, owner, held, waiting, asleep))
        for batch, project in found:
            one = OpenBatch(self._service, self._ask, self._turns, batch, project)
            self._held[batch.id] = one
            self._tasks[batch.id] = asyncio.create_task(self._work(one))

    async def _work(self, one: OpenBatch) -> None:
        """Take a batch as far as it gets, and let go of it."""
        name = one.batch.id
        try:
            await self._advance(one)
            self._not_before.pop(name, None)
            self._faults.pop(name, None)
        except StoppedError:
            pass
        except LostBatchError:
            _LOG.warning("batch %s: another server has taken it over", name)
        except Exception as error:
            await self._failed(one, error)
        finally:
            try:
                await self._soon(
                    lambda: claims.release(self._service.database, self._owner, [name])
                )
            except AWAY as error:  # its lease ends by itself
                _LOG.error("batch %s: %s", name, error)
            finally:
                del self._held[name], self._tasks[name]
                self._wake.set()

    async def _advance(self, one: OpenBatch) -> None:
        batch, service, owner = one.batch, self._service, self._owner
        if not claims.is_due(batch):
            if batch.state is BatchState.validating:
                await self._at_length(one, lambda: steps.check(service, owner, batch, one.halt))
                return
            await one.run()
        await self._at_length(one, lambda: steps.end(service, owner, batch.id, one.halt))

    async def _failed(self, one: OpenBatch, error: Exception) -> None:
        """It is tried again soon; what no other try does better, a few times only."""
        name = one.batch.id
        self._not_before[name] = time.monotonic() + _RETRY_S
        if _is_passing(error):
            _LOG.error("batch %s: %s; it is tried again", name, error)
            return
        _LOG.error("batch %s: a fault of the service", name, exc_info=error)
        if one.added:  # with another of its requests, perhaps
            self._faults.pop(name, None)
        self._faults[name] += 1
        if self._faults[name] < _MOST_FAULTS:
            return
        service, owner = self._service, self._owner
        try:
            await self._at_length(one, lambda: steps.give_up(service, owner, name, error, one.halt))
        except (StoppedError, LostBatchError, *_TRY_AGAIN):
            _LOG.exception("batch %s could not be failed", name)


def _is_passing(error: Exception) -> bool:
    if isinstance(error, FileNotFoundError):  # its folder is not whole
        return False
    return isinstance(error, _TRY_AGAIN) or too_many_processes(error) is not None
