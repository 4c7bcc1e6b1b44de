"""Members of examples that nobody reads, which may be misspelt: a job tells of them."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from launcher import record_fields
from launcher.serve.files.examples import ExampleKind

_SHOWN = 5
#: Names and places that are counted, of a file that has a new one in every line.
_COUNTED = 1000
_LONGEST = 64
_TURN = record_fields.known_in_turns() | {*record_fields.THOUGHT_FIELDS}
_PART = frozenset(("type", "text", "refusal"))
_CALL = frozenset(("id", "type", "index", "function"))
_FUNCTION = frozenset(("name", "arguments", "parsed_arguments"))


@dataclass(slots=True)
class _Found:
    first: int
    """Line of the first example that has it."""
    known: Collection[str]
    """Members that are known there."""
    count: int = 0


class Unread:
    """What is counted of one file of examples of a kind."""

    def __init__(self, kind: ExampleKind) -> None:
        self._kind = kind
        self._found: dict[tuple[str, str], _Found] = {}

    def add(self, record: Mapping[str, Any], line: int) -> None:
        """Count what an example, which has been checked, has."""
        for where, values, known in self._kind.objects(record):
            self._look(values, known, where, line)
        for turn in self._kind.messages(record):
            self._look(turn, _TURN, "a message", line)
            content = turn.get("content")
            for part in content if isinstance(content, list) else ():
                self._look(part, _PART, "a part of a content", line)
            calls = turn.get("tool_calls")
            for call in calls if isinstance(calls, list) else ():
                self._look(call, _CALL, "a call", line)
                self._look(call["function"], _FUNCTION, "the function of a call", line)

    def text(self, name: str) -> str | None:
        """What is told of the file `name`; None if there is nothing."""
        if not self._found:
            return None
        told = [_told(*at, found) for at, found in list(self._found.items())[:_SHOWN]]
        more = len(self._found) - len(told)
        told += [f"and {more} more"] if more else []
        return (
            f"The {name} file has members that are not known: {'; '.join(told)}. Those of messages"
            " are given to the model's template, which may leave them out; nothing else reads them."
        )

    def _look(
        self, values: Mapping[str, Any], known: Collection[str], where: str, line: int
    ) -> None:
        for name, value in values.items():
            if name in known or not record_fields.is_given(value):
                continue
            at = name[:_LONGEST], where
            if at in self._found or len(self._found) < _COUNTED:
                found = self._found.setdefault(at, _Found(line, known))
                found.count += 1


def _told(name: str, where: str, found: _Found) -> str:
    close = difflib.get_close_matches(name, sorted(found.known), n=1, cutoff=0.75)
    near = f", did you mean '{close[0]}'?" if close else ""
    times = "once" if found.count == 1 else f"{found.count:,} times"
    return f"'{name}' of {where} ({times}, first in line {found.first}{near})"
