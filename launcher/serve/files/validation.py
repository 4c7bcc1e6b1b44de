"""The check of a job's files: conversations as OpenAI writes them, one a line.

A line is read at a time, and what is read is written to the file that the run is given.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from launcher import record_fields
from launcher.core.files import fsync_folder, storage_errors
from launcher.core.jsontext import DECODER, Repeated, one_of_each
from launcher.serve.files.unread_members import Unread

LEAST_EXAMPLES = 10
_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MOST_DEPTH = 64
_REMOVE = "Remove it, or the example."


class FileFault(Exception):
    """What is wrong with a file; `code` as clients know it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def keep(
    content: IO[bytes], path: Path, name: str, *, least: int, line_bytes: int
) -> tuple[int, str | None]:
    """Check a file and keep it at `path`, whole or not at all; returns the number of examples, and
    what is to be told of members that nobody reads.

    `name` is "training" or "validation", for messages; `least` examples must be there, and no line
    may be longer than `line_bytes`. Raises `FileFault`, or `StorageError` where it cannot be kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    unread = Unread()
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{path.name}.*.tmp"):  # by whoever died in the midst of it
            left.unlink(missing_ok=True)
        try:
            with open(temporary, "wb") as out:
                count = _copy(content, out, name, line_bytes, unread)
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


def _copy(content: IO[bytes], out: IO[bytes], name: str, line_bytes: int, unread: Unread) -> int:
    count, number = 0, 0
    while line := content.readline(line_bytes + 1):
        number += 1
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        count += 1
        fault = "is too long" if len(line) > line_bytes else fault_of(line, number, unread)
        if fault:
            raise FileFault(
                "invalid_file_format",
                f"The job failed due to a file format error in the {name} file. Invalid file"
                f" format. Example {count} (line {number}) {fault}",
            )
        out.write(line.rstrip(b"\r\n") + b"\n")
    return count


def fault_of(line: bytes, number: int = 0, unread: Unread | None = None) -> str:
    """What is wrong with a line, to be read after "Example 3"; empty if nothing is. Then `unread`
    counts its members, as line `number`."""
    try:
        record = json.loads(
            line.decode("utf-8"), parse_constant=_refuse, object_pairs_hook=one_of_each
        )
        if _SURROGATE.search(line):
            json.dumps(record, ensure_ascii=False).encode()
    except UnicodeError:
        return "is not text in UTF-8: save the file as UTF-8."
    except RecursionError:
        return "is nested too deeply."
    except Repeated as error:
        return f'has the key "{error}" twice in one object.'
    except ValueError:
        return "is not valid JSON."
    if not isinstance(record, dict):
        return "is not a JSON object."
    if _depth_exceeds(record, _MOST_DEPTH):
        return "is nested too deeply."
    fault = _fault_of_record(record)
    if unread is not None and not fault:
        unread.add(record, number)
    return fault


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
    if all(any(answer.get(name) == 0 for name in record_fields.FLAGS) for answer in answers):
        return "has weight 0 on every message from the assistant: nothing can be learned."
    return _fault_beside(record, messages)


def _fault_beside(record: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> str:
    """What is wrong with what stands beside the messages."""
    if known := record_fields.refused(record, "chat"):
        return f'has "{known[0]}", which is not read: {known[1].what}. {_REMOVE}'
    for name in ("tools", "functions"):
        tools = record.get(name)
        if tools is not None and not (isinstance(tools, list) and all(map(_is_tool, tools))):
            return f'has "{name}" that are no list of functions with a name each.'
    if record_fields.is_given(record.get("tools")) and record_fields.is_given(
        record.get("functions")
    ):
        return 'has "tools" and "functions".'
    if record_fields.is_given(record.get("conversations")):
        return 'has "messages" and "conversations".'
    if not isinstance(record.get("parallel_tool_calls"), bool | None):
        return 'has "parallel_tool_calls" that is neither true nor false.'
    options = record.get("chat_template_kwargs")
    if options is not None and not _is_object(options):
        return 'has "chat_template_kwargs" that is no object.'
    if own := sorted(record_fields.OF_THE_CALLER.intersection(options or {})):
        return f'has "{own[0]}" in "chat_template_kwargs", which is no variable of a template.'
    weight = record.get("weight")
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if weight is not None and not (is_number and 0 <= weight <= record_fields.MAX_WEIGHT):
        return 'has a "weight" beside the messages that is no number from 0 to 1e6.'
    beside = next(
        (n for n in record_fields.ANSWERS_BESIDE if record_fields.is_given(record.get(n))), None
    )
    if beside and messages[-1]["role"] != "assistant":
        return f'has its answer in "{beside}", not in the messages.'
    return _fault_of_system(record, messages[0])


def _fault_of_system(record: Mapping[str, Any], first: Mapping[str, Any]) -> str:
    given = [record[name] for name in ("system", "system_prompt") if record.get(name)]
    if not all(isinstance(text, str) for text in given):
        return 'has a "system" beside the messages that is not text.'
    said = {text for text in given if text.strip()}
    if said and first["role"] in ("system", "developer"):
        said.add(_joined(first["content"]))
    return "has two system messages that say different things." if len(said) > 1 else ""


def _joined(content: Any) -> str:
    """A text, or its parts as one."""
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


def _fault_of_message(message: Any) -> str:
    if not _is_object(message):
        return "it is not an object."
    if known := record_fields.refused_in_turn(message):
        return f'its "{known[0]}" is not read: {known[1].what}. {_REMOVE}'
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
    if record_fields.is_given(call := message.get("function_call")):
        if record_fields.is_given(calls):
            return 'it has "tool_calls" and a "function_call".'
        calls = [{"function": call}]
    value = message.get("value")
    content = content if record_fields.is_given(content) or value is None else value
    if role not in _ROLES:
        return f'its "role" is not one of {", ".join(_ROLES)}.'
    for name in ("name", "tool_call_id", *record_fields.THOUGHT_FIELDS):
        if not isinstance(message.get(name), str | None):
            return f'its "{name}" is not text.'
    if fault := _fault_of_flags(message, role):
        return fault
    is_calls = isinstance(calls, list) and all(map(_is_call, calls))
    if record_fields.is_given(calls) and not (role == "assistant" and is_calls):
        return 'its "tool_calls" are no list of calls of functions by the assistant.'
    refusal = message.get("refusal")
    if refusal is not None and not (role == "assistant" and _is_text(refusal)):
        return 'a "refusal" is text, and only for the assistant.'
    refuses = record_fields.is_given(refusal)
    if refuses and content:
        return 'it has a "content" and a "refusal".'
    if record_fields.is_given(value) and value != content:
        return 'its "content" and "value" say different things.'
    if content is None and role == "assistant" and (calls or refuses):
        return ""
    return "" if _is_text(content) else 'its "content" is not text.'


def _fault_of_flags(message: Mapping[str, Any], role: str) -> str:
    """What is wrong with what says whether a turn is learned.

    In files that were made from tables, null stands for what is not there.
    """
    for name in record_fields.FLAGS:
        flag = message.get(name)
        if flag is None:
            continue
        if name == "weight" and (role != "assistant" or isinstance(flag, bool)):
            return 'a "weight" is 0 or 1, and only for the assistant.'
        if not isinstance(flag, int | float) or flag not in (0, 1):
            return f'a "{name}" is 0 or 1.'
        if flag and role != "assistant" and name in ("train", "training"):
            return f'its "{name}" is true, and only what the assistant says is learned.'
    return ""


def _is_text(content: Any) -> bool:
    if isinstance(content, list):
        return all(map(_is_text_part, content))
    return isinstance(content, str)


def _is_text_part(part: Any) -> bool:
    kind = part.get("type") if _is_object(part) else None
    return kind in ("text", "refusal") and isinstance(part.get(kind), str)


def _is_tool(tool: Any) -> bool:
    if not _is_object(tool):
        return False
    function = tool.get("function")
    if not isinstance(function, dict | None):
        return False
    described = function or tool
    return isinstance(described.get("name"), str) and all(
        isinstance(one.get("parameters"), dict | None) for one in (tool, described)
    )


def _is_call(call: Any) -> bool:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        return False
    arguments = function.get("arguments")
    if not isinstance(arguments, str):
        return isinstance(arguments, dict | None)
    try:
        held = DECODER.decode(arguments.strip() or "{}")
        json.dumps(held, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        return False
    return isinstance(held, dict | None) and not _depth_exceeds(held, _MOST_DEPTH)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)
