"""Looking at the lines of files in processes of their own.

A thread that does it would leave the server little time for anyone else, and so would starting a
process for each file.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import IO

from launcher.core.errors import LauncherError
from launcher.serve.files import jsonl

#: To ask a process takes longer than to look at so much.
_SMALL = 16 << 10
_PIECE = 1 << 20
#: Processes that are kept for the next files.
_IDLE = 4


class Lookers:
    """Processes that look at lines; as many as are asked at a time, started when needed."""

    def __init__(self) -> None:
        self._idle: list[subprocess.Popen[bytes]] = []

    def wrong(self, content: IO[bytes], num_bytes: int, line_bytes: int) -> str | None:
        """What is wrong with JSONL, as `jsonl.look` says it; None if nothing is."""
        if num_bytes <= _SMALL:
            return jsonl.look(content, line_bytes)
        process = self._take()
        try:
            found = _ask(process, content, num_bytes, line_bytes)
        except (OSError, ValueError) as error:
            _end(process)
            raise LauncherError(f"a file could not be looked at: {error}") from error
        if len(self._idle) < _IDLE:
            self._idle.append(process)
        else:
            _end(process)
        return found

    def close(self) -> None:
        """End those that are idle. They end by themselves when this process does."""
        while self._idle:
            _end(self._idle.pop())

    def _take(self) -> subprocess.Popen[bytes]:
        with contextlib.suppress(IndexError):
            while True:
                process = self._idle.pop()
                if process.poll() is None:
                    return process
                _end(process)
        # Without site: the script needs the standard library only.
        command = [sys.executable, "-IS", jsonl.__file__]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # noqa: S603


def _ask(
    process: subprocess.Popen[bytes], content: IO[bytes], num_bytes: int, line_bytes: int
) -> str | None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"%d %d\n" % (num_bytes, line_bytes))
    while piece := content.read(_PIECE):
        process.stdin.write(piece)
    process.stdin.flush()
    found: str | None = json.loads(process.stdout.readline())
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.communicate()
