"""uvicorn's HTTP protocol, which waits for no one forever."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import re
import sys
import termios
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from launcher.serve.http.bodies import SLOWEST
from launcher.serve.http.failure import ApiError

_FOLD = re.compile(rb"\n[ \t]")


def guarded(idle_s: float) -> type[H11Protocol]:
    """The protocol class for `listen.serve`.

    A request's head has to be whole within `idle_s`, and so has the rest of a request that has
    been answered already. Bodies that a route reads are watched by `bodies.guarded`. Whoever takes
    less of an answer than `SLOWEST` bytes a second, once it has to be waited for, is left.
    """

    class Guarded(H11Protocol):
        """A connection; `idle_s` is the class's."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.conn = _Strict(h11.SERVER, self.conn._max_incomplete_event_size)
            self._deadline: asyncio.TimerHandle | None = None
            self._reader: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self._unwatch()
            self._unwatch_reader()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._watch_reader()

        def resume_writing(self) -> None:
            self._unwatch_reader()
            super().resume_writing()

        def send_400_response(self, msg: str) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                body = json.dumps(ApiError(400, msg).body()).encode()
                headers = [("content-type", "application/json"), ("connection", "close")]
                for event in (
                    h11.Response(status_code=400, headers=headers, reason="Bad Request"),
                    h11.Data(data=body),
                    h11.EndOfMessage(),
                ):
                    self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

        def _watch(self) -> None:
            head = self.conn.their_state is h11.IDLE
            late = self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE
            if not head and not late:
                self._unwatch()
            elif self._deadline is None and self.timeout_keep_alive_task is None:
                self._deadline = self.loop.call_later(idle_s, self.transport.abort)

        def _unwatch(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _watch_reader(self) -> None:
            before = _unsent(self.transport)
            self._reader = self.loop.call_later(idle_s, self._look_at_reader, before)

        def _look_at_reader(self, before: int) -> None:
            if before - _unsent(self.transport) < SLOWEST * idle_s:
                self.transport.abort()
            else:
                self._watch_reader()

        def _unwatch_reader(self) -> None:
            if self._reader is not None:
                self._reader.cancel()
                self._reader = None

    return Guarded


class _Strict(h11.Connection):
    """Takes no request of which a proxy in front may have another opinion about where it ends.

    So might the next one be somebody else's. h11 refuses what is no HTTP at all.
    """

    def next_event(self) -> Any:
        """The next one; `h11.RemoteProtocolError` for such a request."""
        if self.their_state is h11.IDLE:
            head, end, _ = self.trailing_data[0].partition(b"\r\n\r\n")
            if end and _FOLD.search(head):
                raise h11.RemoteProtocolError("a header is continued on a second line")
        event = super().next_event()
        if isinstance(event, h11.Request):
            names = {bytes(name) for name, _ in event.headers}
            if b"transfer-encoding" in names and (
                b"content-length" in names or event.http_version < b"1.1"
            ):
                raise h11.RemoteProtocolError("the length of the body is stated in two ways")
        return event


def _unsent(transport: asyncio.Transport) -> int:
    """Bytes that the client has not got: here, and in Linux's buffer, which may hold megabytes."""
    waiting = transport.get_write_buffer_size()
    with contextlib.suppress(OSError):
        found = fcntl.ioctl(transport.get_extra_info("socket"), termios.TIOCOUTQ, bytes(4))
        waiting += int.from_bytes(found, sys.byteorder)
    return waiting
