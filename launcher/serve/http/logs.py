"""The service's log: one line an event on stderr, for people or for programs."""

from __future__ import annotations

import atexit
import json
import logging
import os
import sys
import threading
from datetime import datetime, timezone
from types import TracebackType
from typing import TextIO

FORMATS = ("text", "json")
_STDERR = 2
_LONGEST = 1 << 20
#: What was written just before the end has so long to pass.
_LAST_S = 1.0
#: What a record may carry beside its message.
_FIELDS = ("request_id", "method", "route", "status", "ms", "bytes", "key")


def start(form: str) -> None:
    """Log to stderr from now on; `form` is one of `FORMATS`.

    With "json", all that anybody writes to stderr is a line of JSON: other libraries, Python's
    warnings and tracebacks, child processes.
    """
    is_json = form == "json"
    handler = logging.StreamHandler(_relayed() if is_json else None)
    handler.setFormatter(_Json() if is_json else _Text())
    # Those of others too: uvicorn, asyncio, alembic.
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("launcher.serve").setLevel(logging.INFO)
    if is_json:
        logging.captureWarnings(True)
        sys.excepthook = _uncaught
        threading.excepthook = lambda found: _uncaught(
            found.exc_type, found.exc_value or found.exc_type(), found.exc_traceback
        )


def stop() -> None:
    """What has been written to stderr is written; needed before `os._exit` only."""
    sys.stderr.flush()
    if _relays:
        _relays.pop().close()


class _Relay:
    """stderr of this process and its children from now on: what is no JSON is made a line of it."""

    def __init__(self) -> None:
        sys.stderr.flush()
        self._fd = os.dup(_STDERR)
        self.out = open(  # noqa: SIM115 - as long as the process
            os.dup(_STDERR), "w", encoding="utf-8", errors="backslashreplace", buffering=1
        )
        source, sink = os.pipe()
        os.dup2(sink, _STDERR)
        os.close(sink)
        self._thread = threading.Thread(target=self._run, args=(source,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Put stderr back, once all that was written has passed; children may hold the pipe."""
        os.dup2(self._fd, _STDERR)
        self._thread.join(_LAST_S)

    def _run(self, source: int) -> None:
        with open(source, encoding="utf-8", errors="replace", newline="\n") as lines:
            while line := lines.readline(_LONGEST):
                if line.strip():
                    self.out.write(_as_json(line.rstrip("\n")) + "\n")


def _relayed() -> TextIO:
    if not _relays:
        _relays.append(_Relay())
        atexit.register(stop)
    return _relays[0].out


_relays: list[_Relay] = []


def _as_json(line: str) -> str:
    try:
        if isinstance(json.loads(line), dict):
            return line
    except (ValueError, RecursionError):
        pass
    born = datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    told = {"time": born, "level": "warning", "message": line}
    return json.dumps(told, ensure_ascii=False)


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    logging.getLogger(__name__).critical("uncaught exception", exc_info=(kind, error, trace))


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        told = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False)


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        line = f"{_time(record)} {record.levelname.lower():<7} {record.getMessage()}{fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _time(record: logging.LogRecord) -> str:
    born = datetime.fromtimestamp(record.created, timezone.utc)
    return born.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: vars(record)[name] for name in _FIELDS if vars(record).get(name) is not None}
