"""Files for fine-tuning are JSONL: every line is looked at, one at a time."""

from __future__ import annotations

import json
from typing import IO, NoReturn

from launcher.api.failure import ApiError

_EXPECTED = "Expected file to have JSONL format, where every line is a valid JSON dictionary."


def check(content: IO[bytes], line_bytes: int) -> None:
    """Raise `ApiError` 400, naming the line, unless every line is a JSON object.

    No line may be longer than `line_bytes`. Lines of blanks are passed over.
    """
    number = 0
    found = False
    while line := content.readline(line_bytes + 1):
        number += 1
        if len(line) > line_bytes:
            raise _wrong(number, f"it is longer than {line_bytes:,} bytes")
        if line.strip():
            _check_line(number, line)
            found = True
    if not found:
        raise ApiError(400, f"{_EXPECTED} The file has no lines.", param="file")


def _check_line(number: int, line: bytes) -> None:
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        value = json.loads(text, parse_constant=_no_json)
    except UnicodeDecodeError as error:
        raise _wrong(number, f"byte {error.start + 1} is not UTF-8") from error
    except RecursionError as error:
        raise _wrong(number, "it is nested too deeply") from error
    except ValueError as error:  # also numbers with more digits than Python reads
        raise _wrong(number, str(error)) from error
    if not isinstance(value, dict):
        raise _wrong(number, "it is no dictionary")


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


def _wrong(number: int, found: str) -> ApiError:
    return ApiError(400, f"{_EXPECTED} Line {number}: {found}.", param="file")
