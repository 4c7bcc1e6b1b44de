"""Files for fine-tuning are JSONL: every line is looked at, one at a time. Standard library only.

    python -m launcher.api.jsonl LINE_BYTES <FILE

prints what is wrong, if anything is. Large files are looked at in such a process: a thread that
does it would leave the server little time for anyone else.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from typing import IO, NoReturn

from launcher.errors import ExitCode, LauncherError

_EXPECTED = "Expected file to have JSONL format, where every line is a valid JSON dictionary."
#: To start a process takes longer than to read so much.
_SMALL = 64 << 10
_PIECE = 1 << 20


def wrong(content: IO[bytes], num_bytes: int, line_bytes: int) -> str | None:
    """What is wrong, naming the line; None if every line is a JSON object.

    No line may be longer than `line_bytes`. Lines of blanks are passed over.
    """
    if num_bytes <= _SMALL:
        return _look(content, line_bytes)
    command = [sys.executable, "-m", "launcher.api.jsonl", str(line_bytes)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: S603
        assert process.stdin is not None
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has seen enough
            while piece := content.read(_PIECE):
                process.stdin.write(piece)
            process.stdin.close()
        found = process.stdout.read().decode("utf-8")
    if process.returncode not in (ExitCode.ok, ExitCode.data):
        raise LauncherError(f"a file could not be looked at: code {process.returncode}")
    return found or None


def main() -> int:
    """Look at stdin, after whatever else the machine has to do."""
    os.nice(10)
    found = _look(sys.stdin.buffer, int(sys.argv[1]))
    sys.stdout.buffer.write((found or "").encode("utf-8"))
    return ExitCode.ok if found is None else ExitCode.data


def _look(content: IO[bytes], line_bytes: int) -> str | None:
    number = 0
    is_empty = True
    while line := content.readline(line_bytes + 1):
        number += 1
        if len(line) > line_bytes:
            return f"{_EXPECTED} Line {number}: it is longer than {line_bytes:,} bytes."
        if line.strip():
            is_empty = False
            found = _look_at_line(line, is_first=number == 1)
            if found:
                return f"{_EXPECTED} Line {number}: {found}."
    return f"{_EXPECTED} The file has no lines." if is_empty else None


def _look_at_line(line: bytes, *, is_first: bool) -> str | None:
    try:
        text = line.decode("utf-8-sig" if is_first else "utf-8")
        value = json.loads(text, parse_constant=_no_json)
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1} is not UTF-8"
    except RecursionError:
        return "it is nested too deeply"
    except ValueError as error:  # also numbers with more digits than Python reads
        return str(error)
    return None if isinstance(value, dict) else "it is no dictionary"


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


if __name__ == "__main__":
    sys.exit(main())
