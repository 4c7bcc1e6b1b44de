"""Room for models, whatever becomes of those who wait for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.serve.chat import pool as pools
from launcher.serve.chat.engines import Local, Seat
from launcher.serve.chat.model_process import HandedBack
from launcher.serve.chat.pool import ModelPool, ModelSource
from launcher.serve.service import Service

ONE, TWO, THREE = (ModelSource(overrides=(f"seed={seed}",)) for seed in (1, 2, 3))


class Model:
    """In the place of a process with a model: it answers once it is let."""

    def __init__(self, source: ModelSource, alive: list[Model]) -> None:
        self.source, self.since, self.is_alive = source, 0.0, True
        self.has_begun, self.may_end, self.waiting = asyncio.Event(), asyncio.Event(), 0
        self._back = asyncio.Event()
        self._alive = alive
        alive.append(self)

    async def ask(self, request: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        if request.get("waits"):
            await self._back.wait()
            raise HandedBack
        self.has_begun.set()
        yield {"begun": True}
        await self.may_end.wait()
        yield {"finish_reason": "stop"}

    def hand_back(self) -> None:
        self._back.set()

    async def stop(self) -> None:
        self._alive.remove(self)


@pytest.mark.parametrize("is_handed_back", [False, True])
def test_who_goes_away_while_he_waits_for_room_leaves_no_model_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_handed_back: bool
) -> None:
    monkeypatch.setattr(pools, "_LEAST_S", 0.0 if is_handed_back else 60.0)
    (tmp_path / "serve.yaml").write_text(yaml.safe_dump({"chat": {"models": 1}}))
    service = Service.open(tmp_path)
    alive: list[Model] = []

    async def opened(self: Local, seat: Seat, source: ModelSource) -> Model:
        return Model(source, alive)

    monkeypatch.setattr(Local, "open", opened)

    async def all_of(pool: ModelPool, source: ModelSource) -> list[dict[str, Any]]:
        return [line async for line in pool.ask(source, {}, source.overrides[0])]

    async def run() -> None:
        async with ModelPool(service) as pool:
            first = asyncio.create_task(all_of(pool, ONE))
            while not (alive and alive[0].has_begun.is_set()):
                await asyncio.sleep(0)
            one = alive[0]
            gone = asyncio.create_task(all_of(pool, TWO))
            await asyncio.sleep(0.05)
            gone.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(gone, 5)
            third = asyncio.create_task(all_of(pool, THREE))
            await asyncio.sleep(0.05)
            assert alive == [one]  # it still answers: there is no room yet
            one.may_end.set()
            assert len(await asyncio.wait_for(first, 5)) == 2
            while one in alive:
                await asyncio.sleep(0.01)
            while not alive:
                await asyncio.sleep(0.01)
            assert [model.source for model in alive] == [THREE]
            alive[0].may_end.set()
            assert len(await asyncio.wait_for(third, 5)) == 2

    asyncio.run(run())
    assert alive == []
    service.database.engine.dispose()
