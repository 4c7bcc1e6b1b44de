"""Looking at the lines of a file, in a process of its own if it is large.

A thread that does it would leave the server little time for anyone else.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
from typing import IO

from launcher.api import jsonl
from launcher.errors import LauncherError

#: To start a process takes longer than to look at so much.
_SMALL = 64 << 10
_PIECE = 1 << 20


def wrong(content: IO[bytes], num_bytes: int, line_bytes: int) -> str | None:
    """What is wrong with JSONL, as `jsonl.look` says it; None if nothing is."""
    if num_bytes <= _SMALL:
        return jsonl.look(content, line_bytes)
    # Without site: the script needs the standard library only.
    command = [sys.executable, "-IS", jsonl.__file__, str(line_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: S603
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has seen enough
            while piece := content.read(_PIECE):
                process.stdin.write(piece)
            process.stdin.close()
        found = process.stdout.read().decode("utf-8")
    if process.returncode not in (0, jsonl.WRONG):
        raise LauncherError(f"a file could not be looked at: code {process.returncode}")
    return found or None
