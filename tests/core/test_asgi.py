"""A server of ours and the signals that end it."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from launcher import entry
from launcher.core import asgi

SERVER = """
import signal
from launcher import entry
from launcher.core import asgi
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may ignore it
entry.end_by_signals()
async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})
raise SystemExit(asgi.run(app, "127.0.0.1", 0))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_server_ends_well_by_a_signal(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        assert httpx.get(server.stdout.readline().strip()).status_code == 204
        server.send_signal(number)
        _, messages = server.communicate(timeout=entry.GRACE_S + 20)
    assert (server.returncode, messages) == (0, "")


def test_short_answers_go_at_once() -> None:
    """Nagle's algorithm would hold the second part of an answer back until a client has taken note
    of the first, which it does 40 ms later."""
    found: list[int] = []

    class Connected(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted = transport.get_extra_info("socket")
            found.append(accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            transport.close()

    async def connect() -> None:
        listening = asgi.bind("127.0.0.1", 0)
        server = await asyncio.get_running_loop().create_server(Connected, sock=listening)
        async with server:
            reader, writer = await asyncio.open_connection(*listening.getsockname())
            assert await reader.read() == b""
            writer.close()

    asyncio.run(connect())
    assert found == [1]
