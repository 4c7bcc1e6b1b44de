"""Files for fine-tuning are JSONL: every line is looked at, one at a time.

    python launcher/serve/files/jsonl.py

reads "BYTES LINE_BYTES", a line end and so many bytes from stdin, answers with one line of JSON,
what is wrong or null, and goes on until there is no more. It imports as little as it can.
"""

from __future__ import annotations

import json
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO, NoReturn, Protocol

    class Lines(Protocol):
        """What has lines."""

        def readline(self, limit: int, /) -> bytes: ...


_PIECE = 1 << 20
_PACKED = (
    (b"\x1f\x8b", "packed by gzip"),
    (b"PK\x03\x04", "a ZIP archive or a spreadsheet"),
    (b"PAR1", "Parquet"),
    (b"(\xb5/\xfd", "packed by zstd"),
)
_EXPECTED = "Expected file to have JSONL format, where every line is a valid JSON dictionary."


def look(content: Lines, line_bytes: int) -> str | None:
    """What is wrong, naming the line; None if every line is a JSON object.

    No line may be longer than `line_bytes`. Lines of blanks are passed over.
    """
    decoder = json.JSONDecoder(parse_constant=_no_json)
    number = 0
    is_empty = True
    while line := content.readline(line_bytes + 1):
        number += 1
        if number == 1 and (kind := kind_of(line)):
            return f"{_EXPECTED} {kind}."
        if len(line) > line_bytes:
            return f"{_EXPECTED} Line {number}: it is longer than {line_bytes:,} bytes."
        if line.isspace():
            continue
        is_empty = False
        found = _look(line, decoder, is_first=number == 1)
        if found:
            return f"{_EXPECTED} Line {number}: {found}."
    return f"{_EXPECTED} The file has no lines." if is_empty else None


def kind_of(line: bytes) -> str | None:
    """What a file is by its first line, and what to do, if it is no text in UTF-8."""
    if line.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in line[:4]:
        return "The file is text in UTF-16 or UTF-32: save it as UTF-8"
    for begin, kind in _PACKED:
        if line.startswith(begin):
            return f"The file is {kind}: send what is in it, as JSONL"
    return None


def not_utf8(line: bytes, error: UnicodeDecodeError) -> str:
    """What is wrong with a line of other bytes, and what to do."""
    found = f"byte {error.start + 1} (0x{line[error.start]:02x}) is not UTF-8"
    return f"{found}: if the file is in Latin-1 or Windows-1252, save it as UTF-8"


def _look(line: bytes, decoder: json.JSONDecoder, *, is_first: bool) -> str | None:
    try:
        value = decoder.decode(line.decode("utf-8-sig" if is_first else "utf-8"))
    except UnicodeDecodeError as error:
        return not_utf8(line, error)
    except RecursionError:
        return "it is nested too deeply"
    except ValueError as error:  # also numbers with more digits than Python reads
        return str(error)
    if is_first and isinstance(value, list):
        return "it is a list: write each of its dictionaries on a line of its own, without the list"
    return None if isinstance(value, dict) else "it is no dictionary"


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


class _Part:
    """So many bytes of a stream, as a file."""

    def __init__(self, stream: IO[bytes], num_bytes: int) -> None:
        self._stream, self._left = stream, num_bytes

    def readline(self, limit: int) -> bytes:
        line = self._stream.readline(min(limit, self._left))
        self._left -= len(line)
        return line

    def skip(self) -> None:
        while self._left and (piece := self._stream.read(min(_PIECE, self._left))):
            self._left -= len(piece)


def main() -> None:
    """Look at what comes, whenever the machine has nothing better to do."""
    os.nice(10)
    while head := sys.stdin.buffer.readline():
        num_bytes, line_bytes = map(int, head.split())
        part = _Part(sys.stdin.buffer, num_bytes)
        found = look(part, line_bytes)
        part.skip()
        sys.stdout.buffer.write(json.dumps(found).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
