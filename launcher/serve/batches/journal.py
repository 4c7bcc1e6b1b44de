"""What has been answered of a batch, in its folder, until its files are made.

Each server that is at a batch writes a file of its own, a line an answer. Whoever dies in the midst
of a line has lost this one alone: it is asked again. Of two answers to one request, which there can
be if a server was taken for dead, the first counts.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.core.files import storage_errors

REQUESTS = "requests.jsonl"
_NAME = re.compile(r"answers-(\d+)\.jsonl")
#: Number of the request, whether it went well, tokens read and tokens written, and a sum over these
#: and what follows: the rest of a line that was not finished is none of the next one.
_HEAD = re.compile(rb"((\d+) ([01]) (\d+) (\d+) )(\d+) (?=\{)")


@dataclass(slots=True)
class Tally:
    """What is done of a batch."""

    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0

    def add(self, answer: Noted) -> None:
        """One more answer."""
        self.completed += answer.is_ok
        self.failed += not answer.is_ok
        self.input_tokens += answer.input_tokens
        self.output_tokens += answer.output_tokens


@dataclass(frozen=True, slots=True)
class Noted:
    """An answer in a file."""

    path: Path
    offset: int
    num_bytes: int
    is_ok: bool
    input_tokens: int
    output_tokens: int

    def line(self) -> bytes:
        """As it stands in an output or error file."""
        with open(self.path, "rb") as file:
            return os.pread(file.fileno(), self.num_bytes, self.offset)


class AnswerJournal:
    """The answers of one claim of a batch, to which is added."""

    def __init__(self, folder: Path, claim: int) -> None:
        self._path = folder / f"answers-{claim}.jsonl"
        with storage_errors(self._path):
            self._file = open(self._path, "ab", buffering=0)  # noqa: SIM115 - until `close`

    def add(
        self, number: int, told: dict[str, Any], *, is_ok: bool, tokens: tuple[int, int]
    ) -> Noted:
        """Note what is `told` of the request of a number; `StorageError` if there is no room."""
        head = f"{number} {int(is_ok)} {tokens[0]} {tokens[1]} ".encode()
        line = json.dumps(told).encode() + b"\n"
        head += b"%d " % _sum(head, line)
        with storage_errors(self._path):
            offset = os.fstat(self._file.fileno()).st_size
            left = memoryview(head + line)
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError:
                os.ftruncate(self._file.fileno(), offset)  # no half line stands before the next
                raise
        return Noted(self._path, offset + len(head), len(line), is_ok, *tokens)

    def close(self) -> None:
        """Add nothing more."""
        self._file.close()


def noted(folder: Path, going_on: Callable[[], None] = lambda: None) -> dict[int, Noted]:
    """All answers, by the number of their request; `going_on` is called at each, and may raise."""
    files = {int(name[1]): path for path in folder.iterdir() if (name := _NAME.match(path.name))}
    found: dict[int, Noted] = {}
    for claim in sorted(files):
        offset = 0
        with open(files[claim], "rb") as file:
            for line in file:
                going_on()
                answer = _read(files[claim], offset, line)
                if answer is not None:
                    found.setdefault(*answer)
                offset += len(line)
    return found


def _read(path: Path, offset: int, line: bytes) -> tuple[int, Noted] | None:
    head = _HEAD.match(line)
    if head is None or int(head[6]) != _sum(head[1], line[head.end() :]):
        return None
    size = len(line) - head.end()
    place = path, offset + head.end(), size
    return int(head[2]), Noted(*place, head[3] == b"1", int(head[4]), int(head[5]))


def _sum(head: bytes, line: bytes) -> int:
    return zlib.crc32(line, zlib.crc32(head))
