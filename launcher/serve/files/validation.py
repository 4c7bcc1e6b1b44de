"""The check of a job's files: examples as OpenAI writes them, one a line.

A line is read at a time, and what is read is written to the file that the run is given.
"""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import IO

from launcher.core.files import fsync_folder, storage_errors
from launcher.core.jsontext import Repeated, one_of_each
from launcher.serve.files.examples import ExampleKind
from launcher.serve.files.messages import MOST_DEPTH, depth_exceeds
from launcher.serve.files.unread_members import Unread

LEAST_EXAMPLES = 10
#: Faults of a file that are told at once.
MOST_FAULTS = 5
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class FileFault(Exception):
    """What is wrong with a file; `code` as clients know it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def keep(
    content: IO[bytes], path: Path, name: str, kind: ExampleKind, *, least: int, line_bytes: int
) -> tuple[int, str | None]:
    """Check a file of such examples and keep it at `path`, whole or not at all; returns their
    number, and what is to be told of members that nobody reads.

    `name` is "training" or "validation", for messages; `least` examples must be there, and no line
    may be longer than `line_bytes`. Raises `FileFault`, or `StorageError` where it cannot be kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unread = Unread(kind)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*.tmp"):  # by whoever died in the midst of it
            left.unlink(missing_ok=True)
        try:
            with open(temporary, "wb") as out:
                count = _copy(content, out, name, line_bytes, kind, unread)
                if count < least:
                    raise FileFault(
                        "invalid_n_examples",
                        f"{name.capitalize()} file has {count} example(s), but must have at least"
                        f" {least} examples",
                    )
                out.flush()
                os.fsync(out.fileno())
            os.replace(temporary, path)
            fsync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return count, unread.text(name)


def _copy(
    content: IO[bytes],
    out: IO[bytes],
    name: str,
    line_bytes: int,
    kind: ExampleKind,
    unread: Unread,
) -> int:
    count, number, faulty = 0, 0, 0
    told: list[str] = []
    while line := content.readline(line_bytes + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        count += 1
        fault = "is too long" if len(line) > line_bytes else fault_of(line, kind, number, unread)
        if fault:
            faulty += 1
            if len(told) < MOST_FAULTS:
                told.append(f"Example {count} (line {number}) {fault}")
        else:
            out.write(line.rstrip(b"\r\n") + b"\n")
        if len(line) > line_bytes:  # where its end is, and the next one's beginning, nobody knows
            break
    if told:
        more = f" And {faulty - len(told):,} more." if faulty > len(told) else ""
        raise FileFault(
            "invalid_file_format",
            f"The job failed due to a file format error in the {name} file. Invalid file format."
            f" {' '.join(told)}{more}",
        )
    return count


def fault_of(line: bytes, kind: ExampleKind, number: int = 0, unread: Unread | None = None) -> str:
    """What is wrong with a line, to be read after "Example 3"; empty if nothing is. Then `unread`
    counts its members, as line `number`."""
    try:
        record = json.loads(
            line.decode("utf-8"),
            parse_constant=_refuse,
            parse_float=_finite,
            object_pairs_hook=one_of_each,
        )
        if _SURROGATE.search(line):
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeError:
        return "is not text in UTF-8: save the file as UTF-8."
    except RecursionError:
        return "is nested too deeply."
    except Repeated as error:
        return f'has the key "{error}" twice in one object.'
    except _TooLarge as error:
        return f"has the number {error}, which is too large."
    except ValueError:
        return "is not valid JSON."
    if not isinstance(record, dict):
        return "is not a JSON object."
    if depth_exceeds(record, MOST_DEPTH):
        return "is nested too deeply."
    fault = kind.fault(record)
    if unread is not None and not fault:
        unread.add(record, number)
    return fault


class _TooLarge(ValueError):
    """A number that no float holds."""


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise _TooLarge(digits[:40])
    return number


def _refuse(constant: str) -> None:
    raise ValueError(constant)
