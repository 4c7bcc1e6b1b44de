"""Where the output of a rank goes."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

from launcher.core import streams


def redirect(log: Path) -> None:
    """Send this process's output, native code's too, to its log file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    streams.append_to(log)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=True, encoding="utf-8", errors="backslashreplace")


class _Copy:
    """A text stream that writes to two places; the second is the log, which outlives the first."""

    def __init__(self, first: TextIO, second: TextIO, unread: Callable[[str], None]) -> None:
        self._first, self._second, self._unread = first, second, unread

    def write(self, text: str) -> int:
        with contextlib.suppress(ValueError, OSError):
            self._second.write(text)
        try:
            return self._first.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        with contextlib.suppress(ValueError, OSError):
            self._second.flush()
        try:
            self._first.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        streams.discard(self._first)
        self._unread(error.strerror or str(error))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._first, name)


@contextlib.contextmanager
def copied(log: Path, unread: Callable[[str], None]) -> Iterator[None]:
    """Rank 0 of a direct launch: output stays on the terminal and goes to the log file too.

    `unread` is told why once the terminal, or the pipe in its place, takes no more.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8", errors="backslashreplace") as file:
        out, err = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = _Copy(out, file, unread), _Copy(err, file, unread)
        try:
            yield
        finally:
            sys.stdout, sys.stderr = out, err
