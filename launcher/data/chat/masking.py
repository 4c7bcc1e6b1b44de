"""From a conversation to its text and the spans of it that are learned.

Learned is what the model must write itself: each assistant turn from where the generation prompt
ends to its end-of-turn token, which it must learn too, or it never stops. A template that marks
every answer with `{% generation %}` is taken at its word; for others the turns are found in what it
writes (`launcher.data.chat.turns`), or known from conversations of the same shape
(`launcher.data.chat.layouts`). No span holds what somebody else says. What of the assistant's words
is in none is named, and so are turns of others and tools that the template does not write.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from types import EllipsisType
from typing import Any, NamedTuple

from launcher.config.schema import DataConfig, SpecialTokens, Thoughts
from launcher.data.chat.layouts import Layout, Shape
from launcher.data.chat.literals import Literals
from launcher.data.chat.provenance import (
    CALLS,
    KINDS,
    NAMES,
    TOOLS,
    WHOLE,
    in_tags,
    split_thoughts,
)
from launcher.data.chat.template import SAMPLE, ChatTemplate, Message, Span
from launcher.data.chat.turns import TurnFinder
from launcher.data.formats.base import BadRecord, Chat
from launcher.record_fields import THOUGHT_FIELDS

#: The prompt may have opened it. Other white space behind it is the answer's.
_EMPTY_THOUGHT = re.compile(r"\s*" + in_tags(r"(?:{begin}\s*)?{end}") + r"\n*")
_BY_ID = "a template that writes a call's id for its name wants ids such as functions.NAME:0"
#: Conversations of so many shapes keep their layout.
_MOST = 4096


class LeftOut(NamedTuple):
    """What is said and the template does not write: number of the message, from 1, and one of
    `KINDS`. Number 0 has what is of no message of the record: tools, and `data.system`."""

    message: int
    kind: str


def kinds_as_bits(left_out: Iterable[LeftOut]) -> int:
    """The kinds of what is left out as one number."""
    return sum({1 << KINDS.index(kind) for _, kind in left_out})


def kinds_of_bits(bits: int) -> list[str]:
    """The kinds in a number of `kinds_as_bits`."""
    return [kind for i, kind in enumerate(KINDS) if bits >> i & 1]


def told(left_out: Iterable[LeftOut]) -> str:
    """What is left out, in words."""
    left_out = tuple(left_out)
    text = ", ".join(map(_place, left_out))
    unnamed = any(kind == NAMES for _, kind in left_out)
    return text + (f" ({_BY_ID})" if unnamed else "")


def _place(entry: LeftOut) -> str:
    if entry.kind == TOOLS:
        return "the declared tools"
    if entry.kind == WHOLE:
        return f"message {entry.message}" if entry.message else "data.system"
    return f"the {entry.kind} of message {entry.message}"


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How conversations are laid out, as the section `data` of the config has it."""

    system: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    thoughts: Thoughts = Thoughts.template
    learn_empty_thoughts: bool = True
    special_tokens: SpecialTokens = SpecialTokens.auto

    @classmethod
    def of(cls, data: DataConfig) -> ChatOptions:
        """The options of a config."""
        return cls(
            data.system,
            dict(data.template_options),
            data.thoughts,
            data.learn_empty_thoughts,
            data.special_tokens,
        )


class Rendering(NamedTuple):
    """Text of a conversation, the learned spans in it, ascending, as [begin, end), and what of the
    learned turns is in none of them."""

    text: str
    spans: list[Span]
    left_out: tuple[LeftOut, ...] = ()
    named: str | None = None
    """Where the conversation spells control tokens: the text as `Literals.encode` takes it."""


class NoTools(BadRecord):
    """Tools for a template that does not write them."""


class _Learned(NamedTuple):
    """Text, the span of each learned turn by index of its message, and (number of message, kind) of
    what is left out, 0 for what is of none."""

    text: str
    spans: dict[int, Span]
    left_out: tuple[tuple[int, str], ...]


class ChatRenderer:
    """Renders with the chat template of a tokenizer. `ConfigError` if it has none."""

    def __init__(
        self, tokenizer: Any, options: ChatOptions | None = None, literals: Literals | None = None
    ) -> None:
        """`literals` are the tokenizer's, where texts may spell control tokens."""
        self._options = options or ChatOptions()
        parses = self._options.special_tokens is SpecialTokens.parse
        self._literals = None if parses else literals or Literals(tokenizer)
        self._template = ChatTemplate(tokenizer, self._options.variables)
        self._turns = TurnFinder(self._template)
        #: ... for a shape that was seen once
        self._layouts: dict[tuple[Any, frozenset[int]], Layout | EllipsisType | None] = {}

    def render(self, chat: Chat) -> Rendering:
        """The conversation as text.

        Raises `BadRecord` if the template refuses the conversation or hides what it made of a turn.
        """
        messages, tools, mark = self._laid_out(chat.messages, chat.tools)
        added = len(messages) - len(chat.messages)
        silent = frozenset(i + added for i in chat.context_only)
        text, spans, left_out = self._found(messages, tools, silent)
        if not self._options.learn_empty_thoughts:
            spans = {i: _after_empty_thought(text, span) for i, span in spans.items()}
        missing = tuple(LeftOut(max(number - added, 0), kind) for number, kind in left_out)
        found = sorted(spans.values())
        if not mark or not self._literals:
            return Rendering(text, found, missing)
        text, named, place = self._literals.settled(text, mark)
        found = [(place(begin), place(end)) for begin, end in found]
        return Rendering(text, found, missing, named)

    def prompt(
        self, messages: list[Message], tools: list[Message] | None, *, whole: bool = False
    ) -> Rendering:
        """A conversation up to where the assistant is to speak, laid out as `render` does it.

        Raises `BadRecord` if the template refuses it, and `NoTools`, or with `whole` another
        `BadRecord`, if it leaves tools, calls or turns out.
        """
        number = len(messages)
        messages, tools, mark = self._laid_out(messages, tools)
        text = self._template.fitted(messages, tools, True)[1]
        if tools and text == self._template.fitted(messages, None, True)[1]:
            raise NoTools("the chat template of this model writes no tools", hint="leave them out")
        if whole:
            self._require_whole(messages, tools, len(messages) - number)
        if not mark or not self._literals:
            return Rendering(text, [])
        text, named, _ = self._literals.settled(text, mark)
        return Rendering(text, [], (), named)

    def _require_whole(
        self, messages: list[Message], tools: list[Message] | None, added: int
    ) -> None:
        """`BadRecord` if the template writes nothing of a turn or a call."""
        try:
            left_out = self._found([*messages, SAMPLE[1]], tools, frozenset()).left_out
        except BadRecord:  # where an answer cannot be found, nothing is known
            return
        lost = [
            LeftOut(max(number - added, 0), kind)
            for number, kind in left_out
            if kind in (WHOLE, CALLS) and number <= len(messages)
        ]
        if lost:
            raise BadRecord(
                f"the chat template of this model leaves out {told(lost)}",
                hint="leave it out, or ask a model whose template writes it",
            )

    def _laid_out(
        self, messages: list[Message], tools: list[Message] | None
    ) -> tuple[list[Message], list[Message] | None, str]:
        """Messages and tools as they are given to the template, and by what the spellings of
        control tokens in them are broken; "" if there are none."""
        number = len(messages)
        if self._options.thoughts in (Thoughts.last, Thoughts.none):
            messages = without_thoughts(messages, keep_last=self._options.thoughts is Thoughts.last)
        if self._options.system and messages[0]["role"] not in ("system", "developer"):
            messages = [{"role": "system", "content": self._options.system}, *messages]
        messages = self._template.with_roles(messages)
        mark = ""
        if self._literals and self._literals.are_said_in(messages, tools):
            literals, mark = self._literals, self._literals.mark_for(messages, tools)
            messages = [literals.broken_message(message, mark) for message in messages]
            tools = literals.broken(tools, mark)
        messages = self._template.with_thoughts(messages, tools, len(messages) - number)
        return messages, tools, mark

    def ends_turn(self, text: str) -> bool:
        """Whether `text` ends with a special token, at which generation can stop."""
        return self._turns.ends_turn(text)

    def _found(
        self, messages: list[Message], tools: list[Message] | None, silent: frozenset[int]
    ) -> _Learned:
        """By the layout of earlier conversations of the same shape, if there is one that fits."""
        shape = Shape(messages, tools)
        key = (shape.key, silent)
        if key not in self._layouts:
            # What comes but once has none.
            if len(self._layouts) < _MOST:
                self._layouts[key] = ...
            return self._look(messages, tools, silent)
        if self._turns.are_switched(shape.values, tools):
            return self._look(messages, tools, silent)
        layout = self._layouts[key]
        if layout is ...:
            layout = self._layouts[key] = self._layout(shape, tools, silent)
        if layout is None:
            return self._look(messages, tools, silent)
        text = self._template.fitted(messages, tools)[1]
        spans = layout.spans(shape.values, text)
        if spans is None:
            return self._look(messages, tools, silent)
        return _Learned(text + layout.behind, spans, layout.left_out)

    def _layout(
        self, shape: Shape, tools: list[Message] | None, silent: frozenset[int]
    ) -> Layout | None:
        """What the template writes around texts that mean nothing to it; None if that cannot be
        told."""
        try:
            text, spans, left_out = self._look(shape.blank(), tools, silent)
            shown = self._template.fitted(shape.stand_ins(), tools)[1]
        except BadRecord:
            return None
        return Layout.made(shape, shown, text, spans, left_out)

    def _look(
        self, messages: list[Message], tools: list[Message] | None, silent: frozenset[int]
    ) -> _Learned:
        """By comparing renderings."""
        messages, text, tagged = self._template.fitted(messages, tools)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        view = self._turns.view(messages, tools, text)
        # Marks around some turns only are no choice of the record's: those have weights.
        if not view.are_marked(answers, tagged):
            tagged = []
        spans: dict[int, Span] = {}
        if tagged:
            for number, span in enumerate(tagged):
                i = view.speaker(span)
                if i is None and len(tagged) == len(answers):
                    i = answers[number]
                if i is None and not silent:
                    i = -1 - number
                if i is not None and i not in silent:
                    own = self._turns.bounded(view, span, i)
                    before = spans.get(i)
                    # The parts of a turn, with what the template writes between them.
                    spans[i] = (before[0], max(before[1], own[1])) if before else own
        else:
            spans = {i: self._turns.locate(view, i) for i in answers if i not in silent}
        spans = {i: span for i, span in spans.items() if i not in silent and span[0] < span[1]}
        learned = [i for i in answers if i not in silent]
        # A template that marks turns may put those of one speaker into one.
        view.require_own(spans, learned if tagged else ())
        left_out = view.left_out(spans, learned)
        # Of a turn that says something, nothing of which is written, there is nothing to learn.
        kept = {i: span for i, span in spans.items() if not view.is_lost(i, span)}
        return _Learned(view.text, kept, tuple((i + 1, kind) for i, kind in left_out))


def without_thoughts(messages: list[Message], *, keep_last: bool) -> list[Message]:
    """The messages without what the assistant thinks, but (`keep_last`) after the last of the
    user's."""
    asked = [i for i, message in enumerate(messages) if message["role"] == "user"]
    end = (asked[-1] if asked else 0) if keep_last else len(messages)
    return [_silenced(message) if i < end else message for i, message in enumerate(messages)]


def exchanges(chat: Chat) -> list[Chat]:
    """The conversation up to the end of each answer to a question of the user's, which alone is
    learned of it."""
    asked = [i for i, message in enumerate(chat.messages) if message["role"] == "user"]
    found = []
    for begin, end in pairwise([0, *asked[1:], len(chat.messages)]):
        answers = [
            i for i, message in enumerate(chat.messages[:end]) if message["role"] == "assistant"
        ]
        silent = chat.context_only | {i for i in answers if i < begin}
        if not silent.issuperset(answers):
            found.append(replace(chat, messages=chat.messages[:end], context_only=silent))
    return found


def _silenced(message: Message) -> Message:
    if message["role"] != "assistant":
        return message
    kept = {key: value for key, value in message.items() if key not in THOUGHT_FIELDS}
    if isinstance(kept.get("content"), str):
        thought, rest = split_thoughts(kept["content"])
        kept["content"] = rest.lstrip("\n") if thought else rest
    return kept


def _after_empty_thought(text: str, span: Span) -> Span:
    match = _EMPTY_THOUGHT.match(text, span[0], span[1])
    return (match.end(), span[1]) if match else span
