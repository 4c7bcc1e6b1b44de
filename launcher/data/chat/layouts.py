"""Where the texts of a conversation stand, known from an earlier one of the same shape.

To find out what is learned takes many renderings (`launcher.data.chat.masking`). Of conversations
that differ in nothing but their texts, numbers and ids the answer is the same but for lengths. It
is found once, with stand-ins for these; of the others a single rendering is compared, character by
character, with what the template wrote around the stand-ins.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from launcher.data.chat.provenance import TAGS
from launcher.data.chat.template import TAGGED, Message, Span, is_plain
from launcher.record_fields import THOUGHT_FIELDS

TEXT, NUMBER, ID = range(3)
#: Stand-ins: characters of a plane that no text uses, and numbers that few do.
_FIRST, _NUMBERS = 0x100000, 7_000_000
_STANDS_IN = re.compile(r"([\U00100000-\U0010fffd])\1*|70\d{5}")
#: What ends a thought in a content.
_CLOSED = tuple(TAGS.values())


class Shape:
    """What a conversation is apart from its texts, numbers and ids."""

    def __init__(self, messages: list[Message], tools: list[Message] | None) -> None:
        self._messages = messages
        self.kinds: list[int] = []
        self.values: list[Any] = []
        """The texts, numbers and ids, each of `kinds`."""
        self.key: bytes | tuple[Any, ...]
        """The same for conversations of the same shape."""
        if not tools and all(map(_is_simple, messages)):  # most are, and the rest of this is slower
            said = [message["content"] for message in messages]
            self.values = [text for text in said if text and not text.isspace()]
            self.kinds = [TEXT] * len(self.values)
            blanks = ["" if not text else text if text.isspace() else None for text in said]
            self.key = tuple(zip([message["role"] for message in messages], blanks, strict=True))
            return
        marked = self._replaced(self._mark)
        self.key = hashlib.blake2b(repr((marked, tools)).encode("utf-8", "replace")).digest()

    def blank(self) -> list[Message]:
        """Messages of this shape with nothing to say."""
        return self._replaced(lambda kind, i, value: _plain(kind, i, len(str(value))))

    def stand_ins(self) -> list[Message]:
        """Messages that a template makes the same of as of `blank` but for the stand-ins."""
        return self._replaced(
            lambda kind, i, value: (
                _NUMBERS + i
                if kind == NUMBER
                else chr(_FIRST + i) * (len(value) if kind == ID else 1)
            )
        )

    def _mark(self, kind: int, i: int, value: Any) -> str:
        if i == len(self.values):
            self.kinds.append(kind)
            self.values.append(value)
        return f"{chr(_FIRST)}{i},{len(value)}" if kind == ID else f"{chr(_FIRST)}{kind}"

    def _replaced(self, make: Callable[[int, int, Any], Any]) -> list[Message]:
        leaves = _Leaves(make)
        return [leaves.message(message) for message in self._messages]


def _is_simple(message: Message) -> bool:
    """Whether a message is a role and one text, to any template."""
    return is_plain(message) and not any(tag in message["content"] for tag in _CLOSED)


def _plain(kind: int, i: int, size: int) -> Any:
    if kind == NUMBER:
        return _NUMBERS + i
    return "x" if kind == TEXT else str(i).zfill(size)[-size:]


class _Leaves:
    """Replaces what people, models and tools say in messages by what `make` gives for its kind,
    number and value."""

    def __init__(self, make: Callable[[int, int, Any], Any]) -> None:
        self._make = make
        self._count = 0
        self._ids: dict[str, int] = {}

    def message(self, message: Message) -> Message:
        """The message with its texts, numbers and ids replaced."""
        is_answer = message["role"] == "assistant"
        if is_plain(message) and not is_answer:
            return {"role": message["role"], "content": self._text(message["content"])}
        made = dict(message)
        for name, value in message.items():
            if isinstance(value, str):
                if name == "content":
                    made[name] = self._answer(value) if is_answer else self._text(value)
                elif name in THOUGHT_FIELDS:
                    made[name] = self._text(value)
                elif name == "tool_call_id":
                    made[name] = self._id(value)
            elif name == "tool_calls" and isinstance(value, list):
                made[name] = [self._call(call) for call in value]
        return made

    def _answer(self, content: str) -> str:
        if not any(tag in content for tag in _CLOSED):
            return self._text(content)
        found = TAGGED.match(content)
        if found is None or any(content.find(tag, found.end()) >= 0 for tag in _CLOSED):
            return content  # templates differ in what they make of it
        begin, end = found.span(found.lastindex or 0)
        thought = content[begin:end]
        begin += len(thought) - len(thought.lstrip())
        end = max(begin, end - len(thought) + len(thought.rstrip()))
        rest = content[found.end() :]
        return (
            content[:begin]
            + self._text(content[begin:end])
            + content[end : found.end()]
            + self._text(rest)
        )

    def _call(self, call: Any) -> Any:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            return call
        made = {**call, "function": dict(function)}
        own, name = call.get("id"), function.get("name")
        # A template may take the name from the id.
        if isinstance(own, str) and own and not (isinstance(name, str) and name in own):
            made["id"] = self._id(own)
        if isinstance(function.get("arguments"), dict):
            made["function"]["arguments"] = self._held(function["arguments"])
        return made

    def _held(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._held(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self._held(item) for item in value]
        if isinstance(value, str):
            return self._text(value)
        return self._new(NUMBER, value) if type(value) in (int, float) else value

    def _text(self, text: str) -> str:
        if not text or text.isspace():
            return text
        made: str = self._new(TEXT, text)
        return made

    def _id(self, own: str) -> str:
        if own not in self._ids:
            self._ids[own] = self._count
            self._count += 1
        made: str = self._make(ID, self._ids[own], own)
        return made

    def _new(self, kind: int, value: Any) -> Any:
        self._count += 1
        return self._make(kind, self._count - 1, value)


@dataclass(frozen=True, slots=True)
class Layout:
    """What a template writes around the texts, numbers and ids of conversations of one shape."""

    order: list[int]
    """Which of them stands in each gap."""
    parts: list[str]
    """What stands before the gaps, and behind the last."""
    behind: str
    """What ends the last turn and is not written by the template."""
    places: dict[int, tuple[int, int, int, int]]
    """Message -> gaps before its span begins and characters from there, and the same of its end."""
    left_out: tuple[tuple[int, str], ...]
    """(message, kind) of what is in no span."""

    @classmethod
    def made(
        cls,
        shape: Shape,
        shown: str,
        text: str,
        spans: dict[int, Span],
        left_out: tuple[tuple[int, str], ...],
    ) -> Layout | None:
        """From a rendering of `Shape.stand_ins`, and from one of `Shape.blank` with what is learned
        of it. None if these differ in more than the stand-ins."""
        gaps = list(_gaps(shape, shown))
        ends = [0, *(end for _, _, end in gaps)]
        parts = [shown[end:begin] for end, (_, begin, _) in zip(ends, gaps, strict=False)]
        parts.append(shown[ends[-1] :])
        blank = [_plain(shape.kinds[i], i, end - begin) for i, begin, end in gaps]
        behind = text[len(shown) :]
        filled = [piece for pair in zip(parts, map(str, blank), strict=False) for piece in pair]
        if "".join([*filled, parts[-1], behind]) != text:
            return None

        def place(at: int) -> tuple[int, int]:
            before = sum(end <= at for _, _, end in gaps)
            return before, at - ends[before]

        places = {i: (*place(begin), *place(end)) for i, (begin, end) in spans.items()}
        return cls([i for i, _, _ in gaps], parts, behind, places, left_out)

    def spans(self, values: list[Any], text: str) -> dict[int, Span] | None:
        """The spans in what the template makes of a conversation of this shape; None if it wrote
        anything else around the `values`, or wrote these in a way of its own."""
        if not text.startswith(self.parts[0]):
            return None
        at = len(self.parts[0])
        starts = [0]
        for i, part in zip(self.order, self.parts[1:], strict=True):
            own = values[i]
            end = at + len(own) if isinstance(own, str) else -1
            if end < 0 or not (text.startswith(own, at) and text.startswith(part, end)):
                for form in _forms(own):
                    end = at + len(form)
                    if text.startswith(form, at) and text.startswith(part, end):
                        break
                else:
                    return None
            starts.append(end)
            at = end + len(part)
        if at != len(text):
            return None
        return {
            i: (starts[first] + begin, starts[last] + end)
            for i, (first, begin, last, end) in self.places.items()
        }


def _gaps(shape: Shape, shown: str) -> Iterator[tuple[int, int, int]]:
    """(number, begin, end) of each stand-in."""
    for match in _STANDS_IN.finditer(shown):
        i = ord(match[1]) - _FIRST if match[1] else int(match[0]) - _NUMBERS
        # A number that a template or a description of a tool has.
        if match[1] or (i < len(shape.kinds) and shape.kinds[i] == NUMBER):
            yield i, match.start(), match.end()


def _forms(value: Any) -> Iterator[str]:
    """How templates write a value, if not as the text that it is."""
    if not isinstance(value, str):
        yield json.dumps(value)
        yield str(value)
        return
    yield value.strip()
    yield value.strip("\n")
    yield json.dumps(value, ensure_ascii=False)[1:-1]
    yield json.dumps(value.strip(), ensure_ascii=False)[1:-1]
