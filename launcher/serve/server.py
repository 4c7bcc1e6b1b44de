"""The server's process: the app, the controller beside it, and what has to be tidied up."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import resource
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from fastapi.concurrency import run_in_threadpool

from launcher import entry
from launcher.core import asgi
from launcher.core.errors import ConfigError
from launcher.core.processes import end_with_parent
from launcher.serve import permissions, site
from launcher.serve.app import create_app
from launcher.serve.chat.engines import require_vllm
from launcher.serve.files import project_files
from launcher.serve.http import logs
from launcher.serve.http.protocol import guarded
from launcher.serve.service import Service

_LOG = logging.getLogger(__name__)
_GRACE_S = 10
_LOOK_EVERY_S = 0.5
_EXPIRE_EVERY_S = 30.0
_SWEEP_EVERY_S = 3600.0
#: A controller that ends at once is not started again at once.
_LONGEST_PAUSE_S = 30.0
#: Threads that compute give way after this, so that no request waits for a row of them.
_SWITCH_S = 0.0005


def run(home: Path, host: str, port: int, demo_key: str | None, log_format: str) -> int:
    """Serve until Ctrl-C or SIGTERM; jobs run on after that.

    Raises `ConfigError` for settings, an address or a demo key that will not do.
    """
    logs.start(log_format)
    if demo_key is not None and not demo_key.strip():
        hint = "any word, such as --demo-key sk-demo"
        raise ConfigError("the demo key is empty", where="--demo-key", hint=hint)
    permissions.close_to_others()
    service = Service.open(home)
    require_vllm(service.site, str(service.home / site.FILE))
    listening = asgi.bind(host, port)
    if demo_key is not None and not asgi.is_loopback(listening):
        hint = "leave it out and make keys: launcher serve keys create NAME"
        found = "a demo key is only for this host, but others could reach the server"
        raise ConfigError(found, where="--demo-key", hint=hint)
    _allow_connections()
    sys.setswitchinterval(_SWITCH_S)

    @contextlib.asynccontextmanager
    async def lifespan(_: object) -> AsyncIterator[None]:
        stopping = asyncio.Event()
        tasks = [
            asyncio.create_task(_control(home.resolve(), log_format, stopping)),
            asyncio.create_task(_tidy(service, project_files.expire, _EXPIRE_EVERY_S, stopping)),
            asyncio.create_task(_tidy(service, project_files.sweep, _SWEEP_EVERY_S, stopping)),
        ]
        # What lives as long as the server is not looked at again: that takes a tenth of a second.
        gc.collect()
        gc.freeze()
        yield
        stopping.set()
        await asyncio.gather(*tasks)

    app = create_app(service, demo_key, lifespan)
    protocol = guarded(service.site.limits.idle_s)
    return asgi.serve(app, listening, http=protocol, grace_s=_GRACE_S, has_logs=True)


async def _control(home: Path, log_format: str, stopping: asyncio.Event) -> None:
    """Keep a controller running; it ends with this process, however that ends."""
    module = entry.command("launcher.serve.jobs.controller")
    pause_s = 1.0
    while not stopping.is_set():
        born = time.monotonic()
        # From the main thread, as `end_with_parent` asks: the event loop runs in it.
        process = subprocess.Popen(  # noqa: S603
            [*module, str(home), "--log-format", log_format],
            stdin=subprocess.DEVNULL,
            preexec_fn=end_with_parent(),
            start_new_session=True,  # Ctrl-C is for the server, which ends it
        )
        while process.poll() is None and not stopping.is_set():
            await _pause(stopping, _LOOK_EVERY_S)
        if stopping.is_set():
            await run_in_threadpool(_end, process)
            return
        _LOG.error("the controller ended with code %s: it is started again", process.returncode)
        lived_long = time.monotonic() - born > _LONGEST_PAUSE_S
        pause_s = 1.0 if lived_long else min(2 * pause_s, _LONGEST_PAUSE_S)
        await _pause(stopping, pause_s)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


async def _tidy(
    service: Service,
    tidy: Callable[..., None],
    every_s: float,
    stopping: asyncio.Event,
) -> None:
    while not stopping.is_set():
        try:
            await run_in_threadpool(tidy, service.database, service.store)
        except Exception:
            _LOG.exception("tidying up failed: it is tried again")
        await _pause(stopping, every_s)


async def _pause(stopping: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):
        await asyncio.wait_for(stopping.wait(), seconds)


def _allow_connections() -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
