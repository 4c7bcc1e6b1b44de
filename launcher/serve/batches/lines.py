"""The lines of a file of requests: what is wrong with them, and the requests to be answered.

    python -m launcher.serve.batches.lines NUM_BYTES DRAFT ENDPOINT MOST LINE_BYTES

checks so many bytes of stdin, writes their requests to the file DRAFT, and answers on stdout with
one line of JSON: the members of `Checked`, or {"unkept": [...]} if there is no room for them. Of
less bytes nothing is said: whoever sent them has died.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from launcher import entry
from launcher.core.errors import LauncherError, Problem, StorageError, did_you_mean
from launcher.core.files import fsync_folder, storage_errors
from launcher.core.jsontext import MOST_DEPTH, STRICT, Repeated, short, unkept
from launcher.serve.files import jsonl

#: What is wrong is told of so many lines at once.
MOST_FAULTS = 20
#: Longest `custom_id`.
LONGEST_ID = 512
#: A longer name of a model is none; the batch does not bear it.
LONGEST_MODEL = 256
MEMBERS = ("custom_id", "method", "url", "body")
#: A thread that looks at more would leave the server little time for anyone else.
_SMALL = 64 << 10
_PIECE = 1 << 20


class StoppedError(Exception):
    """What was under way is not wanted any more; nothing has come of it."""


@dataclass(slots=True)
class Checked:
    """What a file holds."""

    total: int = 0
    """Its requests."""
    model: str | None = None
    """The model of all of them, if they name one."""
    faults: list[dict[str, Any]] = field(default_factory=list)
    """What is wrong, as `errors.data` of a batch has it: code, line, message, param."""


def checked(
    content: IO[bytes],
    num_bytes: int,
    kept: Path,
    endpoint: str,
    most: int,
    line_bytes: int,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Checked:
    """What `content` holds, by `check`, in a process of its own if there are many bytes; its
    requests are in the file `kept`, unless something is wrong.

    Raises `StorageError` if there is no room for them, and `StoppedError`.
    """
    draft = kept.with_name(f"{kept.name}.{secrets.token_hex(8)}.draft")
    try:
        if num_bytes <= _SMALL:
            found = check(content, draft, endpoint, most, line_bytes)
        else:
            words = [str(num_bytes), str(draft), endpoint, str(most), str(line_bytes)]
            found = _checked_by_another(content, words, is_stopped)
        if not found.faults:
            with storage_errors(kept):
                os.replace(draft, kept)
                fsync_folder(kept.parent)
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    return found


def _checked_by_another(
    content: IO[bytes], words: list[str], is_stopped: Callable[[], bool]
) -> Checked:
    command = entry.command("launcher.serve.batches.lines", *words)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:  # noqa: S603
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            while piece := content.read(_PIECE):
                if is_stopped():
                    raise StoppedError
                process.stdin.write(piece)
        except BrokenPipeError:  # what it has answered, or how it ended, says why
            pass
        except BaseException:
            process.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        answer = process.stdout.read()
    if is_stopped():
        raise StoppedError
    if not answer:
        raise RuntimeError(f"the process that looks at requests ended with {process.returncode}")
    found = json.loads(answer)
    if "unkept" in found:
        raise StorageError([Problem(**one) for one in found["unkept"]])
    return Checked(**found)


def check(content: IO[bytes], draft: Path, endpoint: str, most: int, line_bytes: int) -> Checked:
    """Look at each line, and write the requests to the file `draft`, which is gone again if
    anything is wrong.

    At most `most` requests, all for `endpoint`; no line longer than `line_bytes`. Lines of blanks
    are passed over. Raises `StorageError` if there is no room for them.
    """
    found, ids, models = Checked(), set[str](), set[str | None]()
    with storage_errors(draft), open(draft, "wb") as out:
        for number, line in enumerate(_lines(content, line_bytes), start=1):
            if line.isspace():
                continue
            record, fault = _look(line, number, endpoint, line_bytes, ids)
            if fault is None and found.total == most:
                said = f"The file has more than {most:,} requests."
                fault = _fault("too_many_requests", None, said, None)
            if fault is not None:
                found.faults.append(fault)
                if len(found.faults) == MOST_FAULTS or fault["line"] is None:
                    break
                continue
            found.total += 1
            if len(models) < 2:
                models.add(_model_of(record["body"]))
            kept = json.dumps([record["custom_id"], record["body"]], ensure_ascii=False)
            out.write(kept.encode() + b"\n")
        out.flush()
        os.fsync(out.fileno())
    if not found.total and not found.faults:
        found.faults.append(_fault("empty_file", None, "The file has no requests.", None))
    if found.faults:
        draft.unlink(missing_ok=True)
    found.model = models.pop() if len(models) == 1 else None
    return found


def _model_of(body: dict[str, Any]) -> str | None:
    """The model that it names; what is no name is refused where the request is answered."""
    named = body.get("model")
    return named if isinstance(named, str) and len(named) <= LONGEST_MODEL else None


def _lines(content: IO[bytes], line_bytes: int) -> Iterator[bytes]:
    """The lines; of one that is too long its begin, and then nothing more."""
    while line := content.readline(line_bytes + 1):
        yield line
        if len(line) > line_bytes:
            return


def _look(
    line: bytes, number: int, endpoint: str, line_bytes: int, ids: set[str]
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """The record of a line, and what is wrong with it; its id is one of `ids` from now on."""
    found = jsonl.kind_of(line) if number == 1 else None
    if len(line) > line_bytes:
        found = f"It is longer than {line_bytes:,} bytes"
    if found:
        return {}, _fault("invalid_json_line", number, f"{found}.", None)
    try:
        record = STRICT.decode(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except (ValueError, RecursionError) as error:  # also bytes that are no UTF-8
        return {}, _fault("invalid_json_line", number, f"The line {_why(line, error)}.", None)
    if not isinstance(record, dict):
        said = "is no JSON object: write each request as an object, on a line of its own"
        return {}, _fault("invalid_json_line", number, f"The line {said}.", None)
    if (why := unkept(record, line, MOST_DEPTH + 1)) is not None:
        said = f"The line cannot be kept: {why}. Mend or remove it."
        return {}, _fault("invalid_json_line", number, said, None)
    fault = _fault_of(record, endpoint, ids)
    if fault is not None:
        return record, _fault(fault[0], number, fault[1], fault[2])
    ids.add(record["custom_id"])
    return record, None


def _why(line: bytes, error: Exception) -> str:
    """What is wrong with a line that cannot be read, and what to do."""
    if isinstance(error, UnicodeDecodeError):
        return f"is no text: {jsonl.not_utf8(line, error)}"
    if isinstance(error, json.JSONDecodeError):
        found = f"is broken JSON at column {error.colno} ({error.msg})"
        return f"{found}: each line has to be one whole JSON object"
    if isinstance(error, Repeated):
        named = _shown(short(str(error)))
        return f"has the key '{named}' twice in one object: keep one of the two"
    if isinstance(error, RecursionError):
        return "is nested too deeply: mend or remove it"
    return f"cannot be read: {str(error).partition(';')[0]}. Mend or remove it"


def _shown(text: str) -> str:
    """As a message can hold it: no half of a character, and not the character U+0000."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\0")


def _fault_of(record: dict[str, Any], endpoint: str, ids: set[str]) -> tuple[str, str, str] | None:
    """Code, message and param of what is wrong with a record."""
    for name in MEMBERS:
        if name not in record:
            return "missing_required_parameter", f"Missing required parameter: '{name}'.", name
    for name in record:
        if name not in MEMBERS:
            said = f"Unknown parameter: '{name[:100]}'. {did_you_mean(name, MEMBERS)}"
            return "unknown_parameter", said, name[:100]
    named, method, url, body = (record[name] for name in MEMBERS)
    if not isinstance(named, str) or not 0 < len(named) <= LONGEST_ID:
        said = f"'custom_id' is a string of 1 to {LONGEST_ID} characters."
        return "invalid_custom_id", said, "custom_id"
    if named in ids:
        said = f"The custom_id '{named[:100]}' is that of an earlier request: each has its own."
        return "duplicate_custom_id", said, "custom_id"
    if method != "POST":
        return "invalid_method", "'method' has to be 'POST'.", "method"
    if url != endpoint:
        said = f"'url' has to be the endpoint of the batch, '{endpoint}', not '{str(url)[:100]}'."
        return "invalid_url", said, "url"
    if not isinstance(body, dict):
        return "invalid_body", "'body' has to be an object.", "body"
    if body.get("stream"):
        said = "Unsupported parameter: 'stream': a batch has whole answers."
        return "unsupported_parameter", said, "body.stream"
    return None


def _fault(code: str, line: int | None, message: str, param: str | None) -> dict[str, Any]:
    return {"code": code, "line": line, "message": message, "param": param}


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """A request of a batch."""

    custom_id: str
    model: str | None
    body: bytes


class Requests:
    """The requests that `check` has kept, by number from 0."""

    def __init__(self, kept: Path) -> None:
        self._file = open(kept, "rb")  # noqa: SIM115 - until `close`
        self._begins = [0]
        for line in self._file:
            self._begins.append(self._begins[-1] + len(line))

    def of(self, number: int) -> BatchRequest:
        """The request of this number."""
        begin, end = self._begins[number : number + 2]
        named, body = json.loads(os.pread(self._file.fileno(), end - begin, begin))
        sent = json.dumps(body, ensure_ascii=False).encode()
        return BatchRequest(named, _model_of(body), sent)

    def close(self) -> None:
        """Read nothing more."""
        self._file.close()


class _Part:
    """So many bytes of a stream, as a file."""

    def __init__(self, stream: IO[bytes], num_bytes: int) -> None:
        self._stream, self.left = stream, num_bytes

    def readline(self, limit: int) -> bytes:
        line = self._stream.readline(min(limit, self.left))
        self.left -= len(line)
        return line

    def skip(self) -> None:
        while self.left and (piece := self._stream.read(min(_PIECE, self.left))):
            self.left -= len(piece)


def main(argv: Sequence[str]) -> None:
    """Check what comes, whenever the machine has nothing better to do."""
    os.nice(10)
    num_bytes, name, endpoint, most, line_bytes = argv
    draft = Path(name)
    part: Any = _Part(sys.stdin.buffer, int(num_bytes))
    try:
        found = dataclasses.asdict(check(part, draft, endpoint, int(most), int(line_bytes)))
    except LauncherError as error:
        found = {"unkept": [dataclasses.asdict(one) for one in error.problems]}
    part.skip()
    if part.left:
        draft.unlink(missing_ok=True)
        return
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
