"""Files for fine-tuning are JSONL: every line is looked at, one at a time.

    python launcher/api/jsonl.py LINE_BYTES <FILE

prints what is wrong, if anything is, and exits with 3 then. Started for each large file, so it
imports as little as it can.
"""

from __future__ import annotations

import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, NoReturn

#: Exit code, `ExitCode.data`.
WRONG = 3
_EXPECTED = "Expected file to have JSONL format, where every line is a valid JSON dictionary."


def look(content: IO[bytes], line_bytes: int) -> str | None:
    """What is wrong, naming the line; None if every line is a JSON object.

    No line may be longer than `line_bytes`. Lines of blanks are passed over.
    """
    decoder = json.JSONDecoder(parse_constant=_no_json)
    number = 0
    is_empty = True
    while line := content.readline(line_bytes + 1):
        number += 1
        if len(line) > line_bytes:
            return f"{_EXPECTED} Line {number}: it is longer than {line_bytes:,} bytes."
        if line.isspace():
            continue
        is_empty = False
        found = _look(line, decoder, is_first=number == 1)
        if found:
            return f"{_EXPECTED} Line {number}: {found}."
    return f"{_EXPECTED} The file has no lines." if is_empty else None


def _look(line: bytes, decoder: json.JSONDecoder, *, is_first: bool) -> str | None:
    try:
        value = decoder.decode(line.decode("utf-8-sig" if is_first else "utf-8"))
    except UnicodeDecodeError as error:
        return f"byte {error.start + 1} is not UTF-8"
    except RecursionError:
        return "it is nested too deeply"
    except ValueError as error:  # also numbers with more digits than Python reads
        return str(error)
    return None if isinstance(value, dict) else "it is no dictionary"


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def main() -> int:
    """Look at stdin, whenever the machine has nothing better to do."""
    os.nice(10)
    found = look(sys.stdin.buffer, int(sys.argv[1]))
    if found is None:
        return 0
    sys.stdout.buffer.write(found.encode("utf-8"))
    return WRONG


if __name__ == "__main__":
    sys.exit(main())
