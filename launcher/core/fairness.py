"""Taking turns: whoever asks for much does not go before all of whoever asks for little."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

Item = TypeVar("Item")


class RoundRobin(Generic[Item]):
    """What waits, by who wants it: one of each in turn, and of each the oldest."""

    def __init__(self) -> None:
        # Whose turn it is stands first.
        self._lines: dict[str, deque[Item]] = {}

    def add(self, who: str, item: Item) -> None:
        """One more that waits."""
        self._lines.setdefault(who, deque()).append(item)

    def next(self) -> Item | None:
        """The next one, which waits no more; None if none does."""
        found = self.turn()
        return found and found[1]

    def turn(self, may: Callable[[str], bool] = lambda _: True) -> tuple[str, Item] | None:
        """Whose turn it is, of those who `may`, and what waits no more; None if nothing does."""
        for who, line in self._lines.items():
            if not may(who):
                continue
            del self._lines[who]
            item = line.popleft()
            if line:
                self._lines[who] = line
            return who, item
        return None


class TurnLock:
    """A lock that one has at a time, or `most`; those who wait for it get it in turn."""

    def __init__(self, most: int = 1) -> None:
        self._free = most
        self._waiting: RoundRobin[asyncio.Future[None]] = RoundRobin()

    @contextlib.asynccontextmanager
    async def held(self, who: str) -> AsyncIterator[None]:
        """Have it for the block."""
        if self._free:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(who, turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it has come all the same
                    self._pass_on()
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while (turn := self._waiting.next()) is not None:
            if not turn.done():  # else its waiter has gone
                turn.set_result(None)
                return
        self._free += 1


class TurnThreads:
    """Threads for work that takes long: that of each in turn, at most `most_of_one` at a time of
    those that are one by `owner`."""

    def __init__(
        self,
        count: int,
        name: str,
        most_of_one: int | None = None,
        owner: Callable[[str], str] = lambda who: who,
    ) -> None:
        self._owner = owner
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._waiting: RoundRobin[tuple[Future[None], Callable[[], None]]] = RoundRobin()
        self._most_of_one = most_of_one or count
        self._running: Counter[str] = Counter()
        #: as many wait with no thread to come for them, since those who wait have their most.
        self._passed_over = 0
        self._is_closed = False
        self._lock = threading.Lock()

    def submit(self, who: str, work: Callable[[], None]) -> Future[None]:
        """Do it when a thread is free and it is its turn; `OSError` if no thread can be had."""
        done: Future[None] = Future()
        with self._lock:
            self._waiting.add(who, (done, work))
        try:
            self._threads.submit(self._do_next)
        except RuntimeError as error:  # no thread could be started
            done.cancel()  # another may come to it all the same
            raise OSError(errno.EAGAIN, str(error)) from error
        return done

    def close(self) -> None:
        """Begin nothing more, and wait for nothing."""
        self._is_closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _do_next(self) -> None:
        """Do what waits next, and then, for each that was passed over, one more."""
        while (found := self._begun()) is not None:
            who, (done, work) = found
            if done.set_running_or_notify_cancel():
                try:
                    work()
                except BaseException as error:
                    done.set_exception(error)
                else:
                    done.set_result(None)
            with self._lock:
                own = self._owner(who)
                self._running[own] -= 1
                if not self._running[own]:
                    del self._running[own]
                if not self._passed_over or self._is_closed:
                    return
                self._passed_over -= 1

    def _begun(self) -> tuple[str, tuple[Future[None], Callable[[], None]]] | None:
        with self._lock:
            found = self._waiting.turn(
                lambda who: self._running[self._owner(who)] < self._most_of_one
            )
            if found is None:
                self._passed_over += 1  # as many are added as threads come for
            else:
                self._running[self._owner(found[0])] += 1
            return found
