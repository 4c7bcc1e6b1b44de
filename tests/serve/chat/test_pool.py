"""The pool of answering models: real processes that are shared, replaced, ended and never left."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.core.processes import children
from launcher.serve.chat import pool as pools
from launcher.serve.chat.pool import Failed, ModelPool, ModelSource
from launcher.serve.http.failure import ApiError
from launcher.serve.service import Service

pytestmark = pytest.mark.slow

ONE, TWO = (ModelSource(overrides=("model=tiny", f"seed={seed}")) for seed in (1, 2))
REQUEST = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3, "seed": 1}
LONG = {**REQUEST, "max_tokens": 900, "n": 4}


#: Processes that other tests of this process have left for all, such as multiprocessing's tracker.
_OTHERS: set[int] = set()


def models() -> list[int]:
    """The processes that the pool has started."""
    return [pid for pid in children(os.getpid()) if pid not in _OTHERS]


def with_pool(
    home: Path, work: Callable[[ModelPool], Coroutine[Any, Any, None]], **chat: Any
) -> None:
    (home / "serve.yaml").write_text(yaml.safe_dump({"chat": {"gpus": False, **chat}}))
    service = Service.open(home)
    _OTHERS.clear()
    _OTHERS.update(children(os.getpid()))

    async def run() -> None:
        async with ModelPool(service) as pool:
            await work(pool)
        assert not models()

    asyncio.run(run())
    service.database.engine.dispose()


async def last(
    pool: ModelPool,
    source: ModelSource,
    request: dict[str, Any] = REQUEST,
    project: str = "",
    most: int | None = None,
) -> dict[str, Any]:
    return [line async for line in pool.ask(source, request, project, most)][-1]


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        await asyncio.sleep(0.05)
    raise AssertionError("waited in vain")


def test_one_process_serves_all_and_a_dead_one_is_replaced(tmp_path: Path) -> None:
    async def work(pool: ModelPool) -> None:
        ends = await asyncio.gather(*(last(pool, ONE) for _ in range(5)))
        assert {end["completion_tokens"] for end in ends} == {3}
        (pid,) = models()
        answers = pool.ask(ONE, LONG)
        await anext(answers)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(Failed):  # what has begun is not begun anew
            async for _ in answers:
                pass
        assert (await last(pool, ONE))["completion_tokens"] == 3
        (other,) = models()
        assert other != pid
        os.kill(other, signal.SIGKILL)
        await until(lambda: not models())
        assert (await last(pool, ONE))["completion_tokens"] == 3

    with_pool(tmp_path, work)


def test_the_model_used_longest_ago_makes_room_and_idle_ones_leave(tmp_path: Path) -> None:
    async def work(pool: ModelPool) -> None:
        answers = pool.ask(ONE, LONG)
        await anext(answers)
        (first,) = models()
        waiting = asyncio.create_task(last(pool, TWO))
        await asyncio.sleep(0.5)
        assert models() == [first]  # in use: it is waited for
        await answers.aclose()  # as a client does that hangs up: the answer ends at once
        assert (await waiting)["completion_tokens"] == 3
        assert first not in models()
        await until(lambda: not models())

    with_pool(tmp_path, work, models=1, idle_s=1.5)


def test_a_model_that_cannot_be_opened_is_an_error_and_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    async def work(pool: ModelPool) -> None:
        for source in (ModelSource("ftjob-none", 3), ModelSource(overrides=("model=none",))):
            with pytest.raises(Failed, match="exit code 2"):
                await last(pool, source)
        await until(lambda: not models())

    with_pool(tmp_path, work)
    assert "not a run folder" in capfd.readouterr().err


def test_the_end_of_the_server_is_the_end_of_its_models(tmp_path: Path) -> None:
    async def work(pool: ModelPool) -> None:
        async with aclosing(pool.ask(ONE, LONG)) as answers:
            await anext(answers)
            opening = asyncio.create_task(last(pool, TWO))
            await until(lambda: len(models()) == 2)
            await pool.__aexit__(None, None, None)
            assert not models()
            with pytest.raises((Failed, asyncio.CancelledError)):
                await opening

    with_pool(tmp_path, work)


def test_a_model_makes_room_before_all_that_wait_for_it_are_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "_LEAST_S", 0.0)
    many = {**REQUEST, "max_tokens": 20, "n": 16}  # a batch each

    async def work(pool: ModelPool) -> None:
        red = [asyncio.create_task(last(pool, ONE, many, "red")) for _ in range(12)]
        await asyncio.wait(red, return_when=asyncio.FIRST_COMPLETED)
        assert (await last(pool, TWO, project="green"))["completion_tokens"] == 3
        assert sum(not task.done() for task in red) > 6
        ends = await asyncio.gather(*red)  # they have come back for room
        assert {end["finish_reason"] for end in ends} <= {"stop", "length"}

    with_pool(tmp_path, work, models=1)


def test_a_project_with_too_many_questions_is_told_so(tmp_path: Path) -> None:
    async def work(pool: ModelPool) -> None:
        asked = asyncio.create_task(last(pool, ONE, project="red", most=1))
        await until(lambda: bool(pool._asked))
        with pytest.raises(ApiError) as refused:
            await last(pool, ONE, project="red", most=1)
        assert refused.value.status == 429
        assert refused.value.headers["Retry-After"] == "2"
        await last(pool, ONE, project="green", most=1)
        await asked
        large = pool.ask(ONE, REQUEST, "red", None, 60 << 20)
        await anext(large)
        with pytest.raises(ApiError, match=r"questions of 62,914,560 bytes"):
            await anext(pool.ask(ONE, REQUEST, "red", None, 5 << 20))
        await large.aclose()
        assert (await last(pool, ONE, project="red", most=1))["completion_tokens"] == 3
        assert not pool._asked
        assert not pool._bytes

    with_pool(tmp_path, work)
