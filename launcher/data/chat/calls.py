"""Calls of tools in what a model answers, in the form in which its chat template writes them.

The form is read off the template: what it writes around the call of a conversation of our own. It
is known where a call is one JSON object with a name and arguments (Hermes, Qwen, Llama, Mistral,
Granite and others); of templates that write calls otherwise, answers are text. `CallForm` reads
calls in what was answered, `CallText` has what an answer that is to be calls must look like.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from launcher.data.chat.template import CALL_ID, TOOL, ChatTemplate, called
from launcher.data.chat.turn_ends import by_template
from launcher.data.formats.base import BadRecord
from launcher.data.formats.messages import tools_of

_CONTENT, _VALUE = "probe-content", "probe-value"
_ARGUMENTS = ("arguments", "parameters")
_BETWEEN = re.compile(r"[\s,;]*")
_DECODER = json.JSONDecoder()


class Call(NamedTuple):
    """A call of a tool; arguments are JSON text."""

    name: str
    arguments: str


def as_messages_have(calls: Iterable[Call], turn: int = 0) -> list[dict[str, Any]]:
    """Calls as a message of OpenAI's API has them, of the `turn`-th answer."""
    return [
        {
            "id": f"call{turn:02}{number:03}",
            "type": "function",
            "function": {"name": call.name, "arguments": call.arguments},
        }
        for number, call in enumerate(calls)
    ]


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

    def certain(self, text: str) -> int:
        """How many characters of an answer that goes on are text and no call, whatever follows."""
        if not self.opened:
            first = text.lstrip()[:1]
            return len(text) if first not in ("", "{") else 0
        end = text.find(self.opened)
        if end < 0:
            most = min(len(text), len(self.opened) - 1)
            begun = (n for n in range(most, 0, -1) if text.endswith(self.opened[:n]))
            end = len(text) - next(begun, 0)
        return len(text[:end].rstrip())

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
            start = _behind_blanks(text, start)
            held, end = _object(text, start)
            name = held.get("name")
            if not isinstance(name, str) or name not in names or self.arguments not in held:
                return []
            arguments = held[self.arguments]
            if not isinstance(arguments, str):  # as it was said: numbers keep their digits
                arguments = _source(text, start, self.arguments)
            found.append(Call(name, arguments))
            at = _behind_blanks(text, end)
            at += len(self.closed) if text.startswith(self.closed, at) else 0
            between = _BETWEEN.match(text, at)
            at = between.end() if between else at
        return found


class CallText(NamedTuple):
    """What a template writes of calls and around them, control tokens as their text."""

    opened: str
    """Before the first call."""
    begin: str
    """Of a call, before its name, which is JSON text."""
    middle: str
    """Between name and arguments."""
    end: str
    """Behind the arguments; where a call has an id, `CALL_ID` stands for it."""
    between: str | None
    """Between two calls; None if the template writes one alone."""
    closed: str
    """Behind the last call, before what ends the turn."""

    @classmethod
    def of(cls, tokenizer: Any) -> CallText | None:
        """That of a tokenizer's template; None where `CallForm` is None, or a call is written in
        another order than name and arguments."""
        form = CallForm.of(tokenizer)
        if form is None:
            return None
        template = ChatTemplate(tokenizer)
        ends = [token for token in by_template(tokenizer) if token is not None]
        names = {tokenizer.convert_ids_to_tokens(token) for token in ends}
        for content in ("", _CONTENT):
            one = _said(template, content, 1)
            found = _objects(one, form.arguments)
            if len(found) != 1:
                continue
            begin, end = found[0]
            holes = _holes(one[begin:end], form.arguments)
            if holes is None:
                return None
            several = _said(template, content, 2)
            two = _objects(several, form.arguments)
            lead = one[:begin].split(content)[-1] if content else one[:begin]
            line = lead.rstrip().rfind("\n") + 1
            return cls(
                lead[line:].lstrip() if lead.strip() else "",
                *holes,
                several[two[0][1] : two[1][0]] if len(two) == 2 else None,
                _before_end(one[end:], names | {tokenizer.eos_token}),
            )
        return None


def _said(template: ChatTemplate, content: str, count: int) -> str:
    """What a template writes behind a prompt for an answer of `count` calls; "" if it refuses."""
    question, answer, _ = called(content)
    (call,) = answer["tool_calls"]
    # A template may want ids to differ.
    calls = [{**call, "id": CALL_ID[: len(CALL_ID) - 1] + str(i)} for i in range(count)]
    try:
        prompt = template.render([question], [TOOL], True)[0]
        shown = template.fitted([question, {**answer, "tool_calls": calls}], [TOOL])[1]
    except BadRecord:
        return ""
    return shown[len(prompt) :] if shown.startswith(prompt) else ""


def _objects(text: str, arguments: str) -> list[tuple[int, int]]:
    """Where the calls of `called` stand."""
    found: list[tuple[int, int]] = []
    for match in re.finditer(r"\{", text):
        if found and match.start() < found[-1][1]:
            continue
        held, end = _object(text, match.start())
        if held.get("name") == TOOL["function"]["name"] and isinstance(held.get(arguments), dict):
            found.append((match.start(), end))
    return found


def _holes(call: str, arguments: str) -> tuple[str, str, str] | None:
    """What stands around the name and the arguments of a call."""
    name = json.dumps(TOOL["function"]["name"])
    before = re.match(rf'(.*?"name"\s*:\s*){name}(.*?"{arguments}"\s*:\s*)(?=\{{)', call, re.S)
    if before is None:
        return None
    _, end = _object(call, before.end())
    return before[1], before[2], call[end:]


def _before_end(text: str, ends: Collection[str | None]) -> str:
    """A text up to the first of `ends`."""
    places = [text.find(end) for end in ends if end and end in text]
    return text[: min(places)].rstrip() if places else text.rstrip()


def _behind_blanks(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _source(text: str, at: int, name: str) -> str:
    """The text of a member's value in the JSON object that begins at a place."""
    found = ""
    at = _behind_blanks(text, at + 1)
    while text[at] != "}":
        member, at = _DECODER.raw_decode(text, at)
        begin = _behind_blanks(text, _behind_blanks(text, at) + 1)
        _, at = _DECODER.raw_decode(text, begin)
        if member == name:  # the last one of a name is meant
            found = text[begin:at]
        at = _behind_blanks(text, at)
        if text[at] == ",":
            at = _behind_blanks(text, at + 1)
    return found


def _object(text: str, at: int) -> tuple[dict[str, Any], int]:
    """The JSON object that begins at a place, and where it ends; an empty one if there is none."""
    try:
        held, end = _DECODER.raw_decode(text, at)
    except (ValueError, RecursionError):
        return {}, at
    return (held, end) if isinstance(held, dict) else ({}, at)


class CallReader:
    """Reads the calls in answers to records, of the tools that a record has."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @functools.cached_property
    def _form(self) -> CallForm | None:
        return CallForm.of(self._tokenizer)

    def calls(self, record: Mapping[str, Any], text: str) -> list[dict[str, Any]]:
        """Those of an answer, as a message has them; none where it is not known how they are
        written."""
        try:
            tools = tools_of(record) or ()
        except BadRecord:  # a field of that name that means something else
            return []
        names = [str(tool.get("function", tool).get("name")) for tool in tools]
        if not names or self._form is None:
            return []
        return as_messages_have(self._form.read(text, names)[1])
