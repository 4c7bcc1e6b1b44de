"""Where the output of a rank goes."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO


def redirect(log: Path) -> None:
    """Send this process's output, native code's too, to its log file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, encoding="utf-8", errors="backslashreplace")


class _Copy:
    """A text stream that writes to two places."""

    def __init__(self, first: TextIO, second: TextIO) -> None:
        self._first, self._second = first, second

    def write(self, text: str) -> int:
        with contextlib.suppress(ValueError, OSError):
            self._second.write(text)
        return self._first.write(text)

    def flush(self) -> None:
        with contextlib.suppress(ValueError, OSError):
            self._second.flush()
        self._first.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._first, name)


@contextlib.contextmanager
def copied(log: Path) -> Iterator[None]:
    """Rank 0 of a direct launch: output stays on the terminal and goes to the log file too."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8", errors="backslashreplace") as file:
        out, err = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = _Copy(out, file), _Copy(err, file)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, err
