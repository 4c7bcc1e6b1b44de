"""Turns: who asks for much does not go before all of who asks for little."""

from __future__ import annotations

import asyncio
import functools
import threading

import pytest

from launcher.core.fairness import RoundRobin, TurnLock, TurnThreads


def test_one_of_each_in_turn_and_of_each_the_oldest() -> None:
    turns: RoundRobin[str] = RoundRobin()
    for number in range(3):
        turns.add("red", f"red{number}")
    turns.add("green", "green0")
    assert [turns.next(), turns.next()] == ["red0", "green0"]
    turns.add("green", "green1")
    turns.add("blue", "blue0")
    assert [turns.next() for _ in range(5)] == ["red1", "green1", "blue0", "red2", None]


def test_a_lock_goes_to_each_in_turn_and_not_to_who_has_gone() -> None:
    got: list[str] = []

    async def run() -> None:
        lock = TurnLock()

        async def want(who: str) -> None:
            async with lock.held(who):
                got.append(who)
                await asyncio.sleep(0)

        async with lock.held("first"):
            tasks = [asyncio.create_task(want("red")) for _ in range(3)]
            tasks += [asyncio.create_task(want(who)) for who in ("green", "blue")]
            await asyncio.sleep(0)
            tasks[3].cancel()  # green
            await asyncio.sleep(0)
        await asyncio.gather(*tasks, return_exceptions=True)
        await want("last")  # nobody has kept it

    asyncio.run(asyncio.wait_for(run(), 10))
    assert got == ["red", "blue", "red", "red", "last"]


def test_a_lock_for_two_is_two_at_a_time() -> None:
    held, most, got = 0, 0, list[str]()

    async def run() -> None:
        lock = TurnLock(2)

        async def want(who: str) -> None:
            nonlocal held, most
            async with lock.held(who):
                got.append(who)
                held += 1
                most = max(most, held)
                await asyncio.sleep(0.01)
                held -= 1

        await asyncio.gather(*(want(who) for who in ("red", "red", "red", "red", "green")))
        await want("last")

    asyncio.run(asyncio.wait_for(run(), 10))
    assert (held, most, got[2:4]) == (0, 2, ["red", "green"])


def test_who_is_given_a_lock_while_he_goes_passes_it_on() -> None:
    async def run() -> None:
        lock = TurnLock()

        async def want() -> None:
            async with lock.held("a"):
                raise AssertionError("it was cancelled")

        async with lock.held("first"):
            waiting = asyncio.create_task(want())
            await asyncio.sleep(0)
        waiting.cancel()  # its turn has come, and it does not know yet
        await asyncio.gather(waiting, return_exceptions=True)
        async with lock.held("b"):
            pass

    asyncio.run(asyncio.wait_for(run(), 10))


def test_threads_do_the_work_of_each_in_turn() -> None:
    threads, begin, did = TurnThreads(1, "test"), threading.Event(), list[str]()
    first = threads.submit("red", lambda: None if begin.wait(10) else did.append("late"))
    red = [threads.submit("red", functools.partial(did.append, f"red{n}")) for n in range(3)]
    green = threads.submit("green", lambda: did.append("green"))
    wrong = threads.submit("blue", lambda: did.append(str(1 // 0)))
    assert not green.done()
    begin.set()
    for done in (first, *red, green):
        done.result(10)
    with pytest.raises(ZeroDivisionError):
        wrong.result(10)
    assert did == ["red0", "green", "red1", "red2"]
    threads.close()


def test_one_leaves_a_thread_to_others() -> None:
    threads, begin, did = TurnThreads(3, "test", 2), threading.Event(), list[str]()
    slow = [threads.submit("red", lambda: None if begin.wait(10) else 1 / 0) for _ in range(5)]
    for number in range(3):  # also what comes while all that may run does
        threads.submit("green", functools.partial(did.append, f"green{number}")).result(10)
    assert did == ["green0", "green1", "green2"]
    assert sum(one.running() for one in slow) == 2
    begin.set()
    for one in slow:
        one.result(10)
    wrong = [threads.submit("red", lambda: did.append(str(1 // 0))) for _ in range(4)]
    assert all(isinstance(one.exception(10), ZeroDivisionError) for one in wrong)
    threads.submit("red", lambda: did.append("red")).result(10)  # no place is lost by what fails
    threads.close()


def test_one_by_two_names_leaves_a_thread_to_others() -> None:
    begin, did = threading.Event(), list[str]()
    threads = TurnThreads(3, "test", 2, lambda who: who.partition(" ")[0])
    slow = [
        threads.submit(who, lambda: None if begin.wait(10) else 1 / 0)
        for who in ("red", "red evals") * 3
    ]
    threads.submit("green", lambda: did.append("green")).result(10)
    assert did == ["green"]
    assert [one.running() for one in slow] == [True, True, False, False, False, False]
    begin.set()
    for one in slow:
        one.result(10)
    threads.close()


def test_work_that_no_thread_can_be_had_for_is_not_done_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads, did = TurnThreads(1, "test"), list[str]()

    def start(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        with pytest.raises(OSError, match="can't start new thread"):
            threads.submit("red", lambda: did.append("first"))
    threads.submit("red", lambda: did.append("second")).result(10)
    assert did == ["second"]
    threads.close()
