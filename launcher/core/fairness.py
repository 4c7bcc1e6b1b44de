"""Taking turns: whoever asks for much does not go before all of whoever asks for little."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import threading
from collections import deque
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
        for who, line in self._lines.items():
            del self._lines[who]
            item = line.popleft()
            if line:
                self._lines[who] = line
            return item
        return None


class TurnLock:
    """A lock that one has at a time; those who wait for it get it in turn."""

    def __init__(self) -> None:
        self._is_held = False
        self._waiting: RoundRobin[asyncio.Future[None]] = RoundRobin()

    @contextlib.asynccontextmanager
    async def held(self, who: str) -> AsyncIterator[None]:
        """Have it for the block."""
        if self._is_held:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(who, turn)
            try:
                await turn
            except asyncio.CancelledError:
                if not turn.cancelled():  # it has come all the same
                    self._pass_on()
                raise
        self._is_held = True
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while (turn := self._waiting.next()) is not None:
            if not turn.done():  # else its waiter has gone
                turn.set_result(None)
                return
        self._is_held = False


class TurnThreads:
    """Threads for work that takes long: that of each in turn."""

    def __init__(self, count: int, name: str) -> None:
        self._threads = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._waiting: RoundRobin[tuple[Future[None], Callable[[], None]]] = RoundRobin()
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
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _do_next(self) -> None:
        with self._lock:
            found = self._waiting.next()
        assert found is not None  # as many are added as are begun
        done, work = found
        if not done.set_running_or_notify_cancel():
            return
        try:
            work()
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)
