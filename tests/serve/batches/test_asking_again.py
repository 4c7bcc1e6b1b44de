"""What a batch asks again, how often, and what keeps batches from one another."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import select

from launcher.core.fairness import TurnLock
from launcher.serve.batches import answering, claims, lines, steps, worker
from launcher.serve.batches.answering import OpenBatch
from launcher.serve.batches.asking import Reply
from launcher.serve.batches.journal import noted
from launcher.serve.batches.worker import BatchWorker
from launcher.serve.chat.responses import unavailable
from launcher.serve.db.tables import Batch, BatchState
from launcher.serve.http.failure import ApiError, not_now
from launcher.serve.jobs.ownership import Owner
from launcher.serve.service import Service
from serve.batches.test_batches import add_batches

#: Number of a request and how often it has been asked before -> the answer.
Answering = Callable[[int, int], Awaitable[Reply]]


def reply(error: ApiError | None = None) -> Reply:
    headers = {"x-request-id": "req_1"}
    if error is None:
        return Reply(200, headers, b'{"usage": {}}')
    headers |= {name.lower(): value for name, value in error.headers.items()}
    return Reply(error.status, headers, json.dumps(error.body()).encode())


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answering, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(answering, "_LONGEST_PAUSE_S", 0.01)


def opened(service: Service, count: int, answer: Answering, asked: Counter[int]) -> OpenBatch:
    """A batch of so many requests, all for one model, which `answer` stands for."""
    [name] = add_batches(service, ["ours"], state=BatchState.in_progress, total=count)
    folder = service.batches / name
    folder.mkdir()
    text = "".join(json.dumps([f"r{n}", {"model": "m", "n": n}]) + "\n" for n in range(count))
    (folder / "requests.jsonl").write_text(text)

    async def ask(_caller: Any, _path: str, body: bytes) -> Reply:
        number = json.loads(body)["n"]
        asked[number] += 1
        return await answer(number, asked[number] - 1)

    with service.database.read() as session:
        row = session.scalars(select(Batch)).one()
    return OpenBatch(service, ask, TurnLock(4), row, "ours")


def errors(service: Service, one: OpenBatch) -> list[int]:
    found = noted(service.batches / one.batch.id)
    assert sorted(found) == list(range(one.batch.total))
    return sorted(number for number, answer in found.items() if not answer.is_ok)


def test_a_request_that_kills_its_model_is_the_only_error(service: Service) -> None:
    """All that is under way is lost with the model; patience would last for an hour."""
    service.site.batches.patience_s = 3600
    under_way: set[asyncio.Event] = set()
    asked: Counter[int] = Counter()

    async def answer(number: int, times: int) -> Reply:
        if number == 1:
            while times == 0 and len(under_way) < 3:
                await asyncio.sleep(0.001)
            for one in under_way:
                one.set()
            return reply(unavailable())
        is_killed = asyncio.Event()
        under_way.add(is_killed)
        try:
            await asyncio.wait_for(is_killed.wait(), None if number < 4 and not times else 0.01)
        except asyncio.TimeoutError:
            return reply()
        finally:
            under_way.discard(is_killed)
        return reply(unavailable())

    one = opened(service, 100, answer, asked)
    asyncio.run(one.run())
    assert errors(service, one) == [1]
    assert answering._MOST_OWN <= asked[1] < 20
    assert min(asked[number] for number in (0, 2, 3)) > 1


def test_what_has_failed_is_asked_again_one_at_a_time(service: Service) -> None:
    """So no request is lost with another one that kills the model, again and again."""
    at_once = most = 0

    async def answer(_number: int, times: int) -> Reply:
        nonlocal at_once, most
        at_once += times > 0
        most = max(most, at_once)
        await asyncio.sleep(0.005)
        at_once -= times > 0
        return reply(unavailable() if times < 2 else None)

    one = opened(service, 8, answer, Counter())
    asyncio.run(one.run())
    assert (errors(service, one), most) == ([], 1)


def test_a_model_that_stays_away_is_waited_for_once(service: Service) -> None:
    service.site.batches.patience_s = 0.05
    asked: Counter[int] = Counter()

    async def answer(number: int, _times: int) -> Reply:
        return reply() if number < 5 else reply(unavailable())

    one = opened(service, 100, answer, asked)
    asyncio.run(one.run())
    assert errors(service, one) == list(range(5, 100))
    assert max(asked[number] for number in range(5, 10)) > 1
    assert {asked[number] for number in range(30, 100)} == {1}


@pytest.mark.parametrize(("error", "is_waited_for"), [("busy", True), ("away", False)])
def test_only_what_is_busy_is_waited_for_without_end(
    service: Service, error: str, is_waited_for: bool
) -> None:
    """A service that can do nothing at present says when to come again, too."""
    service.site.batches.patience_s = 0
    busy = ApiError(429, "later", code="rate_limit_exceeded", headers={"Retry-After": "2"})
    said = busy if error == "busy" else not_now()
    asked: Counter[int] = Counter()

    async def answer(number: int, times: int) -> Reply:
        return reply(said) if number == 0 and times < 20 else reply()

    one = opened(service, 3, answer, asked)
    asyncio.run(one.run())
    assert errors(service, one) == ([] if is_waited_for else [0])
    assert asked == {0: 21 if is_waited_for else 1, 1: 1, 2: 1}


def test_a_service_that_is_away_at_times_costs_no_request_its_tries(service: Service) -> None:
    service.site.batches.patience_s = 3600

    async def answer(number: int, times: int) -> Reply:
        return reply(not_now()) if number == 0 and times < 9 else reply()

    one = opened(service, 300, answer, Counter())
    asyncio.run(one.run())
    assert errors(service, one) == []


def test_a_batch_that_only_waits_is_asleep(service: Service) -> None:
    is_busy = True

    async def answer(_number: int, _times: int) -> Reply:
        busy = ApiError(429, "later", code="rate_limit_exceeded")
        return reply(busy if is_busy else None)

    one = opened(service, 9, answer, Counter())

    async def scene() -> None:
        nonlocal is_busy
        assert not one.is_asleep
        running = asyncio.create_task(one.run())
        while not one.is_asleep:
            await asyncio.sleep(0.001)
        is_busy = False
        await running
        assert not one.is_asleep

    asyncio.run(asyncio.wait_for(scene(), 30))
    assert (one.tally.completed, one.added) == (9, 9)


def test_sleepers_take_no_place_and_a_project_has_few_places(service: Service) -> None:
    owner = Owner("here", "x", 1, 0.0)
    add_batches(service, ["red"] * 6 + ["green"], state=BatchState.in_progress)
    held = {batch.id: batch for batch, _ in claims.claim(service.database, owner, {}, ())}
    assert sorted(held) == [*(f"batch_{n}" for n in range(4)), "batch_6"]
    assert claims.claim(service.database, owner, held, ()) == []
    found = claims.claim(service.database, owner, held, (), ["batch_0", "batch_6"])
    assert [batch.id for batch, _ in found] == ["batch_4"]


def test_a_project_does_not_have_all_places_to_be_looked_at(service: Service) -> None:
    owner = Owner("here", "x", 1, 0.0)
    add_batches(service, ["red"] * 9 + ["green"])
    found = claims.claim(service.database, owner, {}, ())
    assert sorted(batch.id for batch, _ in found) == [*(f"batch_{n}" for n in range(4)), "batch_9"]


def test_long_looks_keep_no_other_batch_from_its_answers(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor from its lease; and when the server ends, they do not keep it."""
    looks: list[threading.Event] = []
    is_owned: list[bool] = []

    def look(_service: Any, _owner: Any, batch: Batch, halt: threading.Event) -> None:
        looks.append(halt)
        assert halt.wait(60)
        time.sleep(0.2)
        is_owned.append(row(batch.id).owner is not None)
        raise lines.StoppedError

    monkeypatch.setattr(steps, "check", look)
    projects = ["red"] * 5 + ["green"] * 5
    names = add_batches(service, [*projects, "blue"])
    text = "".join(json.dumps([f"r{n}", {"model": "m"}]) + "\n" for n in range(50))
    (service.batches / names[-1]).mkdir()
    (service.batches / names[-1] / "requests.jsonl").write_text(text)

    async def ask(_caller: Any, _path: str, _body: bytes) -> Reply:
        return reply()

    def row(name: str) -> Batch:
        with service.database.read() as session:
            return session.scalars(select(Batch).where(Batch.id == name)).one()

    async def scene() -> None:
        working = BatchWorker(service, ask)
        loop = asyncio.get_running_loop()
        running = asyncio.create_task(working.run())
        while len(looks) < worker._THREADS:
            await asyncio.sleep(0.01)
        with service.database.begin() as session:
            one = session.scalars(select(Batch).where(Batch.id == names[-1])).one()
            one.state, one.total, one.owner = BatchState.in_progress, 50, None
        while row(names[-1]).completed < 50:
            await asyncio.sleep(0.05)
        assert len(looks) == worker._THREADS
        assert await loop.run_in_executor(None, lambda: True)
        working.stop()
        await running

    asyncio.run(asyncio.wait_for(scene(), 60))
    assert is_owned == [True] * worker._THREADS  # as long as it was looked at
    with service.database.read() as session:
        assert set(session.scalars(select(Batch.owner))) == {None}


def test_what_is_left_of_batches_that_ended_goes_by_the_hour(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_LOOK_EVERY_S", 0.01)
    [name] = add_batches(service, ["ours"], state=BatchState.completed)

    async def ask(_caller: Any, _path: str, _body: bytes) -> Reply:
        raise AssertionError

    async def scene() -> None:
        working = BatchWorker(service, ask)
        running = asyncio.create_task(working.run())
        while working._swept_at is None:
            await asyncio.sleep(0.01)
        (service.batches / name).mkdir()
        await asyncio.sleep(0.1)
        assert (service.batches / name).exists()
        working._swept_at -= worker._SWEEP_EVERY_S
        while (service.batches / name).exists():
            await asyncio.sleep(0.01)
        working.stop()
        await running

    asyncio.run(asyncio.wait_for(scene(), 30))
