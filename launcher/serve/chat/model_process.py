"""One model that answers: a process of the run plane behind its standard streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from launcher import entry
from launcher.core.processes import end_with_parent

_LONGEST_LINE = 16 << 20
_TO_END_S = 5.0

#: A line of the process: see `launcher.inference.worker`.
Line = dict[str, Any]


class Failed(Exception):
    """The process could not be started, or has died."""


class HandedBack(Exception):
    """The model makes room for another before it has begun to answer."""


class Talker:
    """A running process; whoever has started it calls `stop`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._waiting: dict[str, asyncio.Queue[Line | type[Exception]]] = {}
        self._begun: set[str] = set()
        self.since = time.monotonic()
        """Time at which it could be asked."""
        self.has_begun = asyncio.Event()
        """Whether it has begun to answer anything."""
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def start(cls, words: Sequence[str], cwd: str, environment: dict[str, str]) -> Talker:
        """Start `launcher.inference.worker` and wait until its model is open; `Failed` if it ends.

        It ends with this process, however that ends.
        """
        process = await asyncio.create_subprocess_exec(
            *entry.command("launcher.inference.worker", *words),
            cwd=cwd,
            env=environment,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=_LONGEST_LINE,
            preexec_fn=end_with_parent(),
        )
        talker = cls(process)
        try:
            assert process.stdout is not None
            if not await process.stdout.readline():
                raise Failed(f"it has ended with exit code {await process.wait()}")
        except BaseException:
            await talker.stop()
            raise
        talker.since = time.monotonic()
        talker._reader = asyncio.create_task(talker._read(process.stdout))
        return talker

    @property
    def is_alive(self) -> bool:
        """Whether it can be asked."""
        return self._reader is not None and not self._reader.done()

    async def ask(self, request: Line) -> AsyncGenerator[Line, None]:
        """The lines of the answers; the request is withdrawn if they are not read to their end.

        Raises `Failed` if the process dies meanwhile, `HandedBack` after `hand_back`.
        """
        name = secrets.token_hex(8)
        lines = self._waiting[name] = asyncio.Queue()
        left = int(request.get("n", 1))
        try:
            await self._say({**request, "id": name})
            while left:
                line = await lines.get()
                if isinstance(line, type):
                    raise line("it has died" if line is Failed else "")
                left = 0 if "error" in line else left - ("finish_reason" in line)
                yield line
        finally:
            del self._waiting[name]
            self._begun.discard(name)
            if left and self.is_alive:
                self._write({"cancel": name})

    def hand_back(self) -> None:
        """Answer no request that is not begun yet; others are answered to their end."""
        for name, lines in self._waiting.items():
            if name not in self._begun:
                lines.put_nowait(HandedBack)

    async def stop(self) -> None:
        """End the process, at once if it does not within seconds."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), _TO_END_S)
        except (asyncio.TimeoutError, asyncio.CancelledError):
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._reader is not None:
            await self._reader

    async def _say(self, line: Line) -> None:
        if not self.is_alive:
            raise Failed("it has died")
        self._write(line)
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):  # its death is what the reader sees
            await self._process.stdin.drain()

    def _write(self, line: Line) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line).encode() + b"\n")

    async def _read(self, stdout: asyncio.StreamReader) -> None:
        while text := await stdout.readline():
            line = json.loads(text)
            lines = self._waiting.get(line["id"])
            if lines is None:
                continue
            if "begun" in line:
                self._begun.add(line["id"])
                self.has_begun.set()
            else:
                lines.put_nowait(line)
        for lines in self._waiting.values():
            lines.put_nowait(Failed)
        await self._process.wait()
