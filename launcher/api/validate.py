"""The check of a job's files: conversations as OpenAI writes them, one a line.

A line is read at a time, and what is read is written to the file that the run is given.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from launcher.rundir import fsync_folder, storage_errors

LEAST_EXAMPLES = 10
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MOST_DEPTH = 64


class FileFault(Exception):
    """What is wrong with a file; `code` as clients know it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def keep(content: IO[bytes], path: Path, name: str, *, least: int, line_bytes: int) -> int:
    """Check a file and keep it at `path`, whole or not at all; returns the number of examples.

    `name` is "training" or "validation", for messages; `least` examples must be there, and no line
    may be longer than `line_bytes`. Raises `FileFault`, or `StorageError` where it cannot be kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*.tmp"):  # by whoever died in the midst of it
            left.unlink(missing_ok=True)
        try:
            with open(temporary, "wb") as out:
                count = _copy(content, out, name, line_bytes)
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
    return count


def _copy(content: IO[bytes], out: IO[bytes], name: str, line_bytes: int) -> int:
    count, number = 0, 0
    while line := content.readline(line_bytes + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        count += 1
        fault = "is too long" if len(line) > line_bytes else fault_of(line)
        if fault:
            raise FileFault(
                "invalid_file_format",
                f"The job failed due to a file format error in the {name} file. Invalid file"
                f" format. Example {count} (line {number}) {fault}",
            )
        out.write(line.rstrip(b"\r\n") + b"\n")
    return count


def fault_of(line: bytes) -> str:
    """What is wrong with a line, to be read after "Example 3"; empty if nothing is."""
    try:
        record = json.loads(line.decode("utf-8"), parse_constant=_refuse)
        if _SURROGATE.search(line):
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeError:
        return "is not text in UTF-8."
    except RecursionError:
        return "is nested too deeply."
    except ValueError:
        return "is not valid JSON."
    if not isinstance(record, dict):
        return "is not a JSON object."
    if _depth_exceeds(record, _MOST_DEPTH):
        return "is nested too deeply."
    return _fault_of_record(record)


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _depth_exceeds(value: Any, most: int) -> bool:
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return False
    return most == 0 or any(_depth_exceeds(item, most - 1) for item in value)


def _fault_of_record(record: Mapping[str, Any]) -> str:
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        return 'has no list "messages".'
    for number, message in enumerate(messages, 1):
        fault = _fault_of_message(message)
        if fault:
            return f"is wrong at message {number}: {fault}"
    answers = [message for message in messages if message["role"] == "assistant"]
    if not answers:
        return "has no message from the assistant."
    if all(message.get("weight") == 0 for message in answers):
        return "has weight 0 on every message from the assistant: nothing can be learned."
    for name in ("tools", "functions"):
        tools = record.get(name)
        if tools is not None and not (isinstance(tools, list) and all(map(_is_object, tools))):
            return f'has "{name}" that are no list of objects.'
    if not isinstance(record.get("parallel_tool_calls"), bool | None):
        return 'has "parallel_tool_calls" that is neither true nor false.'
    return ""


def _fault_of_message(message: Any) -> str:
    if not _is_object(message):
        return "it is not an object."
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
    if calls is None and (call := message.get("function_call")) is not None:
        calls = [{"function": call}]
    if role not in _ROLES:
        return f'its "role" is not one of {", ".join(_ROLES)}.'
    if not isinstance(message.get("name", ""), str | None):
        return 'its "name" is not text.'
    # In files that were made from tables, null stands for what is not there.
    weight = message.get("weight")
    is_right = role == "assistant" and weight in (0, 1) and not isinstance(weight, bool)
    if weight is not None and not is_right:
        return 'a "weight" is 0 or 1, and only for the assistant.'
    if calls is not None:
        if role != "assistant" or not isinstance(calls, list) or not all(map(_is_call, calls)):
            return 'its "tool_calls" are no list of calls of functions by the assistant.'
        if content is None and calls:
            return ""
    return "" if _is_text(content) else 'its "content" is not text.'


def _is_text(content: Any) -> bool:
    if isinstance(content, list):
        parts = [part for part in content if _is_object(part) and part.get("type") == "text"]
        return len(parts) == len(content) and all(isinstance(p.get("text"), str) for p in parts)
    return isinstance(content, str)


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return False
    arguments = function.get("arguments", "{}")
    if isinstance(arguments, dict):
        return True
    try:
        return isinstance(arguments, str) and _is_object(json.loads(arguments or "{}"))
    except (ValueError, RecursionError):
        return False


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)
