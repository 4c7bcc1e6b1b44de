"""Where in a rendered conversation stands what each message says.

A second rendering tells: in it the characters of every text are replaced, one by one, by a
character that stands for that text alone. Whatever a template trims, splits, reorders, repeats or
leaves out, it does to both, so that a character of the one has the origin of that in its place in
the other. What templates look for in texts is left as it is where they would do otherwise.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from launcher.data.formats.base import BadRecord
from launcher.record_fields import THOUGHT_FIELDS

Message = dict[str, Any]

#: Stand-ins: characters of a plane that no text uses.
_FIRST, _MOST = 0x100000, 0xFFF0
#: Stand-ins of one text, and what is kept between them.
_RUN = re.compile(r'([\U00100000-\U0010fffd])(?:[\s"\\\x00-\x1f]*\1)*')
#: White space is trimmed and these are escaped in JSON; all others are as good as any other.
_PAINTED = re.compile(r'[^\s"\\\x00-\x1f]')
#: Tags around thoughts at the beginning of a content.
TAGS = {"<think>": "</think>", "[THINK]": "[/THINK]", "<|channel>thought": "<channel|>"}


def in_tags(form: str) -> str:
    """A pattern of a thought in any of `TAGS`; `form` has {begin} and {end} for the tags."""
    forms = (
        form.format(begin=re.escape(begin) + r"\b" * begin[-1].isalnum(), end=re.escape(end))
        for begin, end in TAGS.items()
    )
    return f"(?:{'|'.join(forms)})"


#: Thoughts with their tags; some models' opening tag is in the prompt.
_THOUGHTS = re.compile(
    rf"\s*(?!\s)(?:{in_tags('{begin}.*?{end}')}|(?:(?!<think>).)*?</think>)", re.DOTALL
)
_TAGS = re.compile("|".join(re.escape(tag) for pair in TAGS.items() for tag in pair))
CONTENT, THOUGHTS, CALLS, NAMES = "content", "thoughts", "tool calls", "names of tool calls"
#: What others say: a turn of theirs, and the tools that there are.
WHOLE, TOOLS = "whole turns", "declared tools"
#: What may be left out of a conversation.
KINDS = (CONTENT, THOUGHTS, CALLS, NAMES, WHOLE, TOOLS)


@dataclass(frozen=True, slots=True)
class Said:
    """One text of a message, by its stand-in `color`. `size` is in characters that have one."""

    message: int
    kind: str
    color: str
    size: int


@dataclass(frozen=True, slots=True)
class Run:
    """Characters [begin, end) of a rendering that are of one text."""

    begin: int
    end: int
    color: str


class Painted:
    """Messages with stand-ins for all texts but what matches `keep`, a pattern with one group."""

    def __init__(self, messages: list[Message], keep: re.Pattern[str] | None = None) -> None:
        self.keep = keep
        self.said: dict[str, Said] = {}
        self.unpainted: set[int] = set()
        """Messages with a text of which no character has a stand-in."""
        self._ids: dict[str, str] = {}
        self.messages = [self._message(i, message) for i, message in enumerate(messages)]

    def runs(self, text: str) -> Iterator[Run]:
        """The stand-ins in a rendering, in order."""
        for match in _RUN.finditer(text):
            yield Run(match.start(), match.end(), match[1])

    def _message(self, i: int, message: Message) -> Message:
        painted = dict(message)
        content = message.get("content")
        if isinstance(content, str):
            thought = split_thoughts(content)[0] if message["role"] == "assistant" else ""
            is_empty = not _TAGS.sub("", thought).strip()
            painted["content"] = self._text(i, THOUGHTS, thought, is_empty=is_empty) + self._text(
                i, CONTENT, content[len(thought) :]
            )
        elif isinstance(content, list):
            painted["content"] = [
                {**part, "text": self._text(i, CONTENT, part["text"])}
                if isinstance(part, dict) and isinstance(part.get("text"), str)
                else part
                for part in content
            ]
        known: dict[str, _Painter] = {}
        for field in THOUGHT_FIELDS:
            value = message.get(field)
            if isinstance(value, str):
                # Under several names it is one thought, white space aside.
                paint = known.get(value.strip()) or self._painter()
                painted[field] = paint(value)
                if known.setdefault(value.strip(), paint).color not in self.said:
                    self._note(i, THOUGHTS, paint.color, paint.size)
        if message["role"] == "tool" and message.get("tool_call_id") in self._ids:
            painted["tool_call_id"] = self._ids[message["tool_call_id"]]
        if message.get("tool_calls"):
            painted["tool_calls"] = [self._call(i, call) for call in message["tool_calls"]]
        return painted

    def _call(self, i: int, call: Any) -> Any:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            return call
        paint = self._painter()
        name: Any = function.get("name")
        arguments = _arguments(function.get("arguments"), paint)
        self._note(i, CALLS, paint.color, paint.size)
        said = name
        if isinstance(name, str):
            # Without texts in the arguments only the name shows whether the call is written.
            said = self._text(i, NAMES if paint.size else CALLS, name)
        painted = {**function, "name": said}
        if "arguments" in function:
            painted["arguments"] = arguments
        call = {**call, "function": painted}
        # Some templates write a call's id for its name.
        own = call.get("id")
        if isinstance(own, str) and isinstance(name, str) and name and name in own:
            call["id"] = self._ids[own] = own.replace(name, said)
        return call

    def _text(self, i: int, kind: str, text: str, *, is_empty: bool = False) -> str:
        if not text:
            return text
        paint = self._painter()
        painted: str = paint(text)
        if not paint.size and not is_empty and text.strip():
            self.unpainted.add(i)
        self._note(i, kind, paint.color, 0 if is_empty else paint.size)
        return painted

    def _note(self, i: int, kind: str, color: str, size: int) -> None:
        self.said[color] = Said(i, kind, color, size)

    def _painter(self) -> _Painter:
        if len(self.said) > _MOST:
            raise BadRecord(
                f"a conversation of more than {_MOST:,} texts",
                hint="split it, or remove it",
            )
        return _Painter(chr(_FIRST + len(self.said)), self.keep)


class _Painter:
    """Replaces the characters of texts by `color`, and counts them."""

    def __init__(self, color: str, keep: re.Pattern[str] | None) -> None:
        self.color = color
        self.size = 0
        self._keep = keep

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        parts = self._keep.split(value) if self._keep else [value]
        for number in range(0, len(parts), 2):  # between them stands what is kept
            parts[number], count = _PAINTED.subn(self.color, parts[number])
            self.size += count
        return "".join(parts)


def _leaves(value: Any, paint: _Painter) -> Any:
    """Nested data with its texts painted; the names of fields stay."""
    if isinstance(value, dict):
        return {key: _leaves(item, paint) for key, item in value.items()}
    if isinstance(value, list):
        return [_leaves(item, paint) for item in value]
    return paint(value)


def _arguments(value: Any, paint: _Painter) -> Any:
    """Arguments of a call, painted; of JSON text what it holds, so that it stays JSON."""
    if not isinstance(value, str):
        return _leaves(value, paint)
    try:
        held = json.loads(value)
    except ValueError:
        return value
    if json.dumps(held, ensure_ascii=False) != value:
        return value
    return json.dumps(_leaves(held, paint), ensure_ascii=False)


def split_thoughts(content: str) -> tuple[str, str]:
    """Thoughts at the beginning of an assistant's content with their tags, and the rest."""
    match = _THOUGHTS.match(content) if "<" in content or "[" in content else None
    end = match.end() if match else 0
    return content[:end], content[end:]


def same_but_painted(text: str, painted: str) -> bool:
    """Whether two renderings differ in nothing but characters that are stand-ins in the second."""
    if len(text) != len(painted):
        return False
    one, other = (
        np.frombuffer(shown.encode("utf-32-le", "surrogatepass"), np.uint32)
        for shown in (text, painted)
    )
    return bool(((one == other) | (other >= _FIRST)).all())


def looked_for(source: str, *, words: bool) -> list[str]:
    """Texts in a Jinja template that it may look for in what people say, longest first.

    Without `words` only those that no one would write by chance, such as tags.
    """
    import jinja2
    from jinja2 import nodes
    from jinja2.exceptions import TemplateError
    from transformers.utils import chat_template_utils

    try:
        compiled = chat_template_utils._compile_jinja_template(source)
        tree = compiled.environment.parse(source)
    except (TemplateError, jinja2.TemplateSyntaxError, AttributeError):
        return []
    found = {node.value for node in tree.find_all(nodes.Const) if isinstance(node.value, str)}
    chosen = {
        text.strip()
        for text in found
        if words or (len(text.strip()) > 1 and not text.strip().replace("_", "").isalnum())
    }
    return sorted(chosen - {""}, key=lambda text: (-len(text), text))
