"""Serving an app of ours with uvicorn, on a port that is known to be free."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import signal
import socket
import sys
from types import FrameType
from typing import Any
from urllib.parse import urlsplit

from launcher.core.errors import ConfigError, ExitCode


def run(app: Any, host: str, port: int) -> int:
    """Serve until Ctrl-C or SIGTERM: `bind`, then `serve`."""
    return serve(app, bind(host, port))


def serve(
    app: Any,
    listening: socket.socket,
    *,
    http: Any = "h11",
    grace_s: int = 5,
    has_logs: bool = False,
) -> int:
    """Serve until Ctrl-C, SIGTERM or SIGHUP; prints the address on stdout, where it can be reached.
    After SIGTERM or SIGHUP it ends with exit code 0.

    `http` is uvicorn's protocol class; requests have `grace_s` to end. uvicorn
    sets up loggers of its own unless the caller `has_logs`. There is no access log of
    uvicorn's: it would hold who asked what.
    """
    import uvicorn

    address, port = listening.getsockname()[:2]
    shown = f"[{address}]" if ":" in address else address
    print(f"http://{shown}:{port}", flush=True)
    if not is_loopback(listening):
        print("reachable from elsewhere, unencrypted: put a TLS proxy in front", file=sys.stderr)
    config = uvicorn.Config(
        app,
        http=http,
        access_log=False,
        log_level="warning",
        log_config=None if has_logs else uvicorn.config.LOGGING_CONFIG,
        server_header=False,
        timeout_graceful_shutdown=grace_s,
    )
    with contextlib.suppress(ValueError):  # not in the main thread, as in tests
        # uvicorn raises the signal again once all is ended well: that is no death by a signal.
        signal.signal(signal.SIGTERM, _end)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup wishes
            signal.signal(signal.SIGHUP, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    uvicorn.Server(config).run(sockets=[listening])
    return ExitCode.ok


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(ExitCode.ok)


def is_loopback(listening: socket.socket) -> bool:
    """Whether only this host reaches it."""
    return ipaddress.ip_address(listening.getsockname()[0]).is_loopback


def names_loopback(host: str) -> bool:
    """Whether a request's `Host` is an address or a name that stands for this host everywhere."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens there; `ConfigError` if the address cannot be had."""
    try:
        if not 0 <= port < 1 << 16:  # getaddrinfo would take it modulo that
            raise OverflowError(f"{port} is no port")
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # With its protocol: asyncio lets short answers go at once on sockets that name it alone.
        listening = socket.socket(*found[:3])
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(found[4])
        # Here, so that whoever reads the address can connect at once.
        listening.listen(1024)
    except (OSError, OverflowError, UnicodeError) as error:
        taken = getattr(error, "errno", None) == errno.EADDRINUSE
        hint = "--port with another number, or 0 for a free one" if taken else "mend --host, --port"
        raise ConfigError(f"cannot listen: {error}", where=f"{host}:{port}", hint=hint) from error
    return listening
