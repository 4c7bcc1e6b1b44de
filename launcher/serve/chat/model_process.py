"""One model that answers: a process of the run plane behind its standard streams."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path
from typing import Any

from launcher import entry
from launcher.core.processes import end_with_parent

_LONGEST_LINE = 16 << 20
_TO_END_S = 5.0
_LOG = logging.getLogger(__name__)

#: A line of the process: see `launcher.inference.worker`.
Line = dict[str, Any]


class Failed(Exception):
    """The process could not be started, or has died."""


class Died(Failed):
    """It has died in the midst of an answer, perhaps by what it was asked."""


class HandedBack(Exception):
    """The model makes room for another before it has begun to answer."""


class Talker:
    """A running process; whoever has started it calls `stop`."""

    def __init__(
        self,
        process: asyncio.subprocess.Process,
        to_end_s: float = _TO_END_S,
        scratch: Path | None = None,
    ) -> None:
        self._process, self._to_end_s, self._scratch = process, to_end_s, scratch
        self._waiting: dict[str, asyncio.Queue[Line | type[Exception]]] = {}
        self._begun: set[str] = set()
        self.since = time.monotonic()
        """Time at which it could be asked."""
        self.has_begun = asyncio.Event()
        """Whether it has begun to answer anything."""
        self._reader: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls,
        words: Sequence[str],
        cwd: str,
        environment: dict[str, str],
        *,
        module: str = "launcher.inference.worker",
        opening: Line | None = None,
        to_end_s: float = _TO_END_S,
        scratch: Path | None = None,
    ) -> Talker:
        """Start `module` and wait until its model is open; `Failed` if it ends.

        `opening` is told it before all, and it has `to_end_s` to end. It ends with this process,
        however that ends. The folder `scratch` is removed when it has ended, by whatever cause.
        """
        try:
            process = await asyncio.create_subprocess_exec(
                *entry.command(module, *words),
                cwd=cwd,
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=_LONGEST_LINE,
                preexec_fn=end_with_parent(),
            )
        except BaseException:
            _remove(scratch)
            raise
        talker = cls(process, to_end_s, scratch)
        try:
            assert process.stdout is not None
            if opening is not None:
                talker._write(opening)
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

        Raises `Died` if the process dies meanwhile, `HandedBack` after `hand_back`.
        """
        name = secrets.token_hex(8)
        lines = self._waiting[name] = asyncio.Queue()
        left = int(request.get("n", 1))
        try:
            await self._say({**request, "id": name})
            while left:
                line = await lines.get()
                if isinstance(line, type):
                    raise line("it has died" if line is Died else "")
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

    def tell(self, line: Line) -> None:
        """Let it know what is answered by nothing."""
        if self.is_alive:
            self._write(line)

    async def stop(self) -> None:
        """End the process, at once if it does not within seconds."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            await asyncio.wait_for(self._process.wait(), self._to_end_s)
        except (asyncio.TimeoutError, asyncio.CancelledError):
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._reader is not None:
            await self._reader
        else:
            await asyncio.to_thread(_remove, self._scratch)

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
        try:
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
        except (ValueError, KeyError) as error:  # a line that is too long, or none of the worker's
            _LOG.error("a model's process is ended: %s", error)
        finally:
            if not stdout.at_eof():
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
            await self._process.wait()
            await asyncio.to_thread(_remove, self._scratch)
            # As the last: whoever asks until here is among them, and then it is not alive.
            for lines in self._waiting.values():
                lines.put_nowait(Died)


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)
