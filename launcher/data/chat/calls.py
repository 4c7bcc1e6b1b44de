"""Calls of tools in what a model answers, in the form in which its chat template writes them.

The form is read off the template: what it writes around the call of a conversation of our own. It
is known where a call is one JSON object with a name and arguments (Hermes, Qwen, Llama, Mistral,
Granite and others); of templates that write calls otherwise, answers are text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NamedTuple

from launcher.data.chat.template import TOOL, ChatTemplate, called
from launcher.data.formats.base import BadRecord

_CONTENT, _VALUE = "probe-content", "probe-value"
_ARGUMENTS = ("arguments", "parameters")
_BETWEEN = re.compile(r"[\s,;]*")
_DECODER = json.JSONDecoder()


class Call(NamedTuple):
    """A call of a tool; arguments are JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class CallForm:
    """What a template writes around calls, without special tokens, which answers do not show."""

    opened: str
    closed: str
    arguments: str
    """Name of the arguments beside `name`."""

    @classmethod
    def of(cls, tokenizer: Any) -> CallForm | None:
        """The form of a tokenizer's template; None if it has none that is known."""
        if not tokenizer.chat_template:
            return None
        template = ChatTemplate(tokenizer)
        for content in (_CONTENT, ""):
            question, answer, _ = called(content)
            try:
                prompt = template.render([question], [TOOL], True)[0]
                shown = template.fitted([question, answer], [TOOL])[1]
            except BadRecord:
                continue
            if not shown.startswith(prompt) or content not in shown:
                continue
            ids = tokenizer(shown[len(prompt) :], add_special_tokens=False)["input_ids"]
            text = tokenizer.decode(ids, skip_special_tokens=True)
            found = cls._found(text.split(content)[-1] if content else text)
            if found:
                return found
        return None

    @classmethod
    def _found(cls, text: str) -> CallForm | None:
        for match in re.finditer(r"\{", text):
            held, end = _object(text, match.start())
            names = [name for name in _ARGUMENTS if name in held]
            if held.get("name") == TOOL["function"]["name"] and len(names) == 1:
                if _VALUE not in json.dumps(held[names[0]]):
                    continue  # the tool's description
                opened = text[: match.start()].split("\n")
                # What opens a call stands on its line, or on one of its own before it.
                lines = [line.strip() for line in opened if line.strip()]
                closed = text[end:].strip().split("\n")[0].strip()
                return cls(lines[-1] if lines else "", closed, names[0])
        return None

    def read(self, text: str, names: Collection[str]) -> tuple[str, list[Call]]:
        """What an answer says beside calls of the tools `names`, and these calls; none where
        anything in it is no such call."""
        first = len(text) - len(text.lstrip())
        opening = re.compile(re.escape(self.opened) + r"\s*\{")
        places = [match.start() for match in opening.finditer(text)] if self.opened else [first]
        for begin in places:
            calls = self._calls(text, begin, names)
            if calls:
                return text[:begin].rstrip(), calls
        return text, []

    def _calls(self, text: str, at: int, names: Collection[str]) -> list[Call]:
        """What a text is from `at` to its end, if it is nothing but calls."""
        found: list[Call] = []
        while at < len(text):
            start = at + len(self.opened) if text.startswith(self.opened, at) else at
            held, end = _object(text, _behind_blanks(text, start))
            name = held.get("name")
            if not isinstance(name, str) or name not in names or self.arguments not in held:
                return []
            arguments = held[self.arguments]
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            found.append(Call(name, arguments))
            at = _behind_blanks(text, end)
            at += len(self.closed) if text.startswith(self.closed, at) else 0
            between = _BETWEEN.match(text, at)
            at = between.end() if between else at
        return found


def _behind_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _object(text: str, at: int) -> tuple[dict[str, Any], int]:
    """The JSON object that begins at a place, and where it ends; an empty one if there is none."""
    try:
        held, end = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return {}, at
    return (held, end) if isinstance(held, dict) else ({}, at)
