"""Sends what is in the outbox, signed as Standard Webhooks says: clients verify it by
`webhooks.unwrap`."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import hmac
import logging
import ssl
import threading
import time
from collections.abc import AsyncIterator, Sequence

import httpx2

from launcher import __version__
from launcher.serve.db.database import AWAY
from launcher.serve.service import Service
from launcher.serve.site import origin_of
from launcher.serve.webhooks import endpoints, outbox
from launcher.serve.webhooks.outbox import Letter

_LOG = logging.getLogger(__name__)
#: Being sent at a time, of all projects.
_AT_A_TIME = 8
_LOOK_EVERY_S = 1.0
#: What a claim lasts beyond the time that an endpoint has.
_MARGIN_S = 5.0
_FORGET_EVERY_S = 3600.0


class SendError(Exception):
    """Nobody has answered."""


class Sender(threading.Thread):
    """Sends what is due until it is stopped."""

    def __init__(self, service: Service) -> None:
        super().__init__(name="webhooks", daemon=True)
        self._service = service
        self._stopping = threading.Event()
        self._under_way: set[asyncio.Task[None]] = set()

    def stop(self) -> None:
        """Begin nothing more; what is under way is sent again by whoever comes next."""
        self._stopping.set()

    def run(self) -> None:
        """Work until `stop`."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        forget_at = 0.0
        async with client() as connected:
            while not self._stopping.is_set():
                try:
                    if time.monotonic() > forget_at:
                        forget_at = time.monotonic() + _FORGET_EVERY_S
                        await asyncio.to_thread(self._forget)
                    await self._begin(connected)
                except AWAY as error:
                    _LOG.error("%s; it is tried again", error)
                # One that has ended makes room for the next of its project.
                waited = asyncio.create_task(asyncio.sleep(_LOOK_EVERY_S))
                await asyncio.wait({waited, *self._under_way}, return_when=asyncio.FIRST_COMPLETED)
                waited.cancel()
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)

    async def _begin(self, connected: httpx2.AsyncClient) -> None:
        free = _AT_A_TIME - len(self._under_way)
        if not free:
            return
        lease_s = self._service.site.webhooks.timeout_s + _MARGIN_S
        for letter in await asyncio.to_thread(outbox.claim, self._service.database, free, lease_s):
            task = asyncio.create_task(self._send(connected, letter))
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)

    def _forget(self) -> None:
        with self._service.database.begin() as session:
            outbox.forget(session)

    async def _send(self, connected: httpx2.AsyncClient, letter: Letter) -> None:
        status = 0
        try:
            if not endpoints.is_allowed(self._service.site, letter.url):
                answer = "the site does not allow its address"
            else:
                timeout_s = self._service.site.webhooks.timeout_s
                status = await send(connected, letter, timeout_s)
                answer = f"HTTP {status}"
        except SendError as error:
            answer = str(error)
        except Exception as error:
            _LOG.exception("event %s", letter.event)
            answer = f"a fault of the service: {type(error).__name__}"
        settle = functools.partial(
            outbox.settle,
            is_sent=200 <= status < 300,
            tries_s=self._service.site.webhooks.tries_s,
        )
        try:
            state = await asyncio.to_thread(settle, self._service.database, letter, answer)
        except AWAY as error:  # its claim ends by itself
            _LOG.error("event %s: %s; it is sent again", letter.event, error)
            return
        if state != outbox.SENT:
            where = origin_of(letter.url)
            _LOG.warning("event %s to %s: %s, %s", letter.event, where, answer, state)


@contextlib.asynccontextmanager
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    """A client that goes straight to where it is sent and follows nobody elsewhere."""
    async with httpx2.AsyncClient(
        verify=_tls(), follow_redirects=False, trust_env=False, timeout=None
    ) as made:
        yield made


@functools.cache
def _tls() -> ssl.SSLContext:
    """The certificates of this machine, or those of SSL_CERT_FILE."""
    return ssl.create_default_context()


async def send(connected: httpx2.AsyncClient, letter: Letter, timeout_s: float) -> int:
    """HTTP status that the endpoint answers with within `timeout_s`. Raises `SendError`."""
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "User-Agent": f"launcher/{__version__}",
        **signed(letter.event, int(time.time()), letter.body, letter.secrets),
    }

    async def posted() -> int:
        body = letter.body.encode()
        async with connected.stream("POST", letter.url, content=body, headers=headers) as answer:
            return answer.status_code

    try:
        return await asyncio.wait_for(posted(), timeout_s)
    except asyncio.TimeoutError as error:
        raise SendError(f"no answer within {timeout_s:g} s") from error
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError) as error:
        raise SendError(str(error) or type(error).__name__) from error


def signed(event: str, at: int, body: str, secrets: Sequence[str]) -> dict[str, str]:
    """Headers of a message sent at `at`, Unix seconds, with a signature by each of the secrets
    (Standard Webhooks, symmetric: HMAC-SHA256 over id, time and body)."""
    content = f"{event}.{at}.{body}".encode()
    marks = []
    for secret in secrets:
        key = base64.b64decode(secret.removeprefix("whsec_"))
        mark = hmac.new(key, content, hashlib.sha256).digest()
        marks.append(f"v1,{base64.b64encode(mark).decode()}")
    return {
        "webhook-id": event,
        "webhook-timestamp": str(at),
        "webhook-signature": " ".join(marks),
    }
