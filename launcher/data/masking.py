"""From a conversation to its text and the spans of it that are learned.

Learned is what the model must write itself: each assistant turn from where the generation prompt
ends to its end-of-turn token, which it must learn too, or it never stops. A template that marks
this with `{% generation %}` is taken at its word; for others it is found by comparing the whole
with renderings of its beginnings. Where these differ, as templates write the last turn in another
way than earlier ones (another end, text behind it, its thoughts), they are laid beside each other
at the last text that both have (see `launcher.data.provenance`).

By the same means it is seen, character by character, that no span holds what somebody else says,
and what of the assistant's words is in none.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from types import EllipsisType
from typing import Any, NamedTuple

from launcher.config.schema import DataConfig, Thoughts
from launcher.data.formats.base import BadRecord, Chat
from launcher.data.layouts import Layout, Shape
from launcher.data.provenance import (
    CALLS,
    CONTENT,
    NAMES,
    THOUGHT_FIELDS,
    THOUGHTS,
    Painted,
    Run,
    looked_for,
    same_but_painted,
    split_thoughts,
)
from launcher.data.template import SAMPLE, ChatTemplate, Message, Span

#: What may be left out of a turn, in the order in which it is said.
KINDS = (CONTENT, THOUGHTS, CALLS, NAMES)
_EMPTY_THOUGHT = re.compile(
    # The prompt may have opened it.
    r"\s*(?:(?:<think>)?\s*</think>|(?:\[THINK\])?\s*\[/THINK\]"
    r"|(?:<\|channel>thought)?\s*<channel\|>)\s*"
)
_BY_ID = "a template that writes a call's id for its name wants ids such as functions.NAME:0"
_DIGITS = re.compile(r"\d+")
#: So many shapes of conversations keep their layout, and of turns their borders.
_MOST = 4096


class LeftOut(NamedTuple):
    """What the assistant says and the template does not write: number of the message, from 1, and
    one of `KINDS`."""

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
    text = ", ".join(f"the {kind} of message {message}" for message, kind in left_out)
    unnamed = any(kind == NAMES for _, kind in left_out)
    return text + (f" ({_BY_ID})" if unnamed else "")


@dataclass(frozen=True, slots=True)
class ChatOptions:
    """How conversations are laid out, as the section `data` of the config has it."""

    system: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    thoughts: Thoughts = Thoughts.template
    learn_empty_thoughts: bool = True

    @classmethod
    def of(cls, data: DataConfig) -> ChatOptions:
        """The options of a config."""
        return cls(
            data.system, dict(data.template_options), data.thoughts, data.learn_empty_thoughts
        )


class Rendering(NamedTuple):
    """Text of a conversation, the learned spans in it, ascending, as [begin, end), and what of the
    learned turns is in none of them."""

    text: str
    spans: list[Span]
    left_out: tuple[LeftOut, ...] = ()


class _Gaps(NamedTuple):
    """What stands around the words of a turn, as [begin, end), and what `kind` of turn it is."""

    kind: tuple[Any, ...]
    before: Span
    after: Span


class _Borders(NamedTuple):
    """How much of the gaps of a turn belongs to it, from their ends: what is `opened` before its
    first word, what is `left` behind its end, and what ends it that the template does not write."""

    opened: str
    left: str
    behind: str


class _Learned(NamedTuple):
    """Text, the span of each learned turn by index of its message, and (number of message, kind) of
    what is left out."""

    text: str
    spans: dict[int, Span]
    left_out: tuple[tuple[int, str], ...]


class ChatRenderer:
    """Renders with the chat template of a tokenizer. `ConfigError` if it has none."""

    def __init__(self, tokenizer: Any, options: ChatOptions | None = None) -> None:
        self._options = options or ChatOptions()
        self._template = ChatTemplate(tokenizer, self._options.variables)
        self._specials = self._template.specials
        self._control = self._template.control
        #: ... for a shape that was seen once
        self._borders: dict[tuple[Any, ...], _Borders] = {}
        self._layouts: dict[bytes, Layout | EllipsisType | None] = {}

    def render(self, chat: Chat) -> Rendering:
        """The conversation as text.

        Raises `BadRecord` if the template refuses the conversation or hides what it made of a turn.
        """
        messages, silent, added = chat.messages, chat.context_only, 0
        if self._options.thoughts in (Thoughts.last, Thoughts.none):
            messages = without_thoughts(messages, keep_last=self._options.thoughts is Thoughts.last)
        if self._options.system and messages[0]["role"] not in ("system", "developer"):
            messages = [{"role": "system", "content": self._options.system}, *messages]
            silent, added = frozenset(i + 1 for i in silent), 1
        messages = self._template.with_thoughts(messages, chat.tools, added)
        text, spans, left_out = self._found(messages, chat.tools, silent)
        named = tuple(LeftOut(number - added, kind) for number, kind in left_out)
        return Rendering(text, sorted(spans.values()), named)

    def ends_turn(self, text: str) -> bool:
        """Whether `text` ends with a special token, at which generation can stop."""
        return text.endswith(self._specials)

    def _found(
        self, messages: list[Message], tools: list[Message] | None, silent: frozenset[int]
    ) -> _Learned:
        """By the layout of earlier conversations of the same shape, if there is one that fits."""
        shape = Shape(messages, tools)
        if shape.key not in self._layouts:
            # What comes but once has none.
            if len(self._layouts) < _MOST:
                self._layouts[shape.key] = ...
            return self._look(messages, tools, silent)
        layout = self._layouts[shape.key]
        if layout is ...:
            layout = self._layouts[shape.key] = self._layout(shape, tools)
        if layout is None:
            return self._look(messages, tools, silent)
        text = self._template.fitted(messages, tools)[1]
        spans = layout.spans(shape.values, text)
        if spans is None:
            return self._look(messages, tools, silent)
        learned = {i: span for i, span in spans.items() if i not in silent}
        left_out = tuple(entry for entry in layout.left_out if entry[0] - 1 not in silent)
        is_ended = layout.behind and len(messages) - 1 not in silent
        return _Learned(text + layout.behind * bool(is_ended), learned, left_out)

    def _layout(self, shape: Shape, tools: list[Message] | None) -> Layout | None:
        """What the template writes around texts that mean nothing to it; None if that cannot be
        told."""
        try:
            text, spans, left_out = self._look(shape.blank(), tools, frozenset())
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
        view = self._view(messages, tools, text)
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
                    own = self._bounded(view, span, i)
                    before = spans.get(i)
                    # The parts of a turn, with what the template writes between them.
                    spans[i] = (before[0], max(before[1], own[1])) if before else own
        else:
            spans = {i: self._locate(view, i) for i in answers if i not in silent}
        spans = {i: span for i, span in spans.items() if i not in silent and span[0] < span[1]}
        if not self._options.learn_empty_thoughts:
            spans = {i: _after_empty_thought(view.text, span) for i, span in spans.items()}
        learned = [i for i in answers if i not in silent]
        # A template that marks turns may put those of one speaker into one.
        view.require_own(spans, learned if tagged else ())
        left_out = view.left_out(spans, learned)
        # Of a turn that says something, nothing of which is written, there is nothing to learn.
        kept = {i: span for i, span in spans.items() if not view.is_lost(i, span)}
        return _Learned(view.text, kept, tuple((i + 1, kind) for i, kind in left_out))

    def _view(self, messages: list[Message], tools: list[Message] | None, text: str) -> _View:
        """The conversation with stand-ins, if the template can be made to treat them alike."""
        patterns: list[re.Pattern[str] | None] = [None, *self._kept(tools)]
        # Where the template will find what it looks for, nothing else needs to be tried first.
        if _finds(patterns, messages):
            patterns = [*patterns[1:], None]
        for keep in patterns:
            painted = Painted(messages, keep)
            try:
                shown, _ = self._template.render(painted.messages, tools)
            except BadRecord:
                continue
            if same_but_painted(text, shown):
                found = _View(self._template, messages, tools, text, painted, shown)
                system = messages[0].get("content") if messages[0]["role"] != "user" else None
                if isinstance(system, str) and (tags := self._kept(tools)[:1]):
                    found.switches = tuple(tags[0].findall(system))
                return found
        raise BadRecord(
            "it cannot be told who says what in what the chat template makes of the conversation",
            hint="give a template that writes texts as they are with model.chat_template=FILE",
        )

    def _kept(self, tools: list[Message] | None) -> list[re.Pattern[str]]:
        """What may have to stay as it is in texts for the template to treat them alike: what it
        looks for, names of tools, and characters that HTML escapes; the likeliest first."""
        tags, words = self._looked_for(bool(tools))
        functions = [tool.get("function", tool) for tool in tools or () if isinstance(tool, dict)]
        names = [str(function["name"]) for function in functions if "name" in function]
        found = [tags, [*tags, *names], [*words, *names, *"<>&'"]]
        patterns = dict.fromkeys("|".join(map(re.escape, texts)) for texts in found if texts)
        return [re.compile(f"({pattern})") for pattern in patterns]

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one or two answers an object
    def _looked_for(self, with_tools: bool) -> tuple[list[str], list[str]]:
        source = self._template.source([{}] if with_tools else None)
        return looked_for(source, words=False), looked_for(source, words=True)

    def _bounded(self, view: _View, span: Span, i: int) -> Span:
        """The span of a generation block without a generation prompt or the next turn's opening
        that it holds, and up to the end-of-turn token, which it may leave out or have white space
        behind."""
        begin, end = span
        if i < 0:
            return span
        try:
            own_begin, own_end = self._locate(view, i)
        except BadRecord:
            return span
        if begin < own_begin < end:
            begin = own_begin
        if begin < own_end < end and end >= view.next_run(own_end):
            end = own_end
        turn = view.text[begin:end].rstrip()
        if self.ends_turn(turn):
            return begin, begin + len(turn)
        return begin, own_end if view.text[end:own_end].strip() in self._specials else end

    def _locate(self, view: _View, i: int) -> Span:
        """Where assistant turn `i` lies: as one before it that stood between the same marks, or by
        rendering the conversation up to it."""
        gaps = view.gaps(i)
        if gaps is None:
            return self._compared(view, i)
        texts = (view.shown[slice(*gaps.before)], view.shown[slice(*gaps.after)])
        # Numbers in calls are the record's own, and stand between marks.
        key = (*gaps.kind, view.switches, *(_DIGITS.sub("0", text) for text in texts))
        known = self._borders.get(key)
        if known and texts[0].endswith(known.opened) and texts[1].endswith(known.left):
            view.append(known.behind)
            end = len(view.shown) if known.behind else gaps.after[1] - len(known.left)
            return gaps.before[1] - len(known.opened), end
        size = len(view.shown)
        begin, end = self._compared(view, i)
        opened, left = view.shown[begin : gaps.before[1]], view.shown[end : gaps.after[1]]
        between = gaps.before[0] <= begin <= gaps.before[1] and gaps.after[0] <= end
        if between and len(self._borders) < _MOST:
            self._borders[key] = _Borders(opened, left, view.shown[size:])
        return begin, end

    def _compared(self, view: _View, i: int) -> Span:
        begin = self._begin(view, i)
        return begin, max(begin, self._end(view, i, begin))

    def _begin(self, view: _View, i: int) -> int:
        before = view.beginning(i, prompt=True)
        if before is None:
            raise _unlike(i)
        if view.shown.startswith(before):
            return len(before)
        at, tail = view.beside(before)
        if at is None:
            raise _unlike(i)
        gap = view.shown[at : view.next_run(at)]
        common = self._template.agreement(tail, gap)
        bare = view.beginning(i, prompt=False)
        place, bare_tail = (at, tail) if bare is None else view.beside(bare)
        if place != at:
            bare_tail = tail
        # A generation prompt may open a thought that the finished turn does not show.
        needed = len(tail) if tail == bare_tail else self._template.agreement(tail, bare_tail) + 1
        if common < needed:
            raise _unlike(i)
        return at + common

    def _end(self, view: _View, i: int, begin: int) -> int:
        if i == len(view.messages) - 1:
            return self._last_end(view, i, begin)
        after = view.beginning(i + 1, prompt=False)
        if after is None:
            raise _unlike(i)
        alone = bool(self._template.opening) and view.messages[i + 1]["role"] == "assistant"
        if view.shown.startswith(after):
            return self._ended(after, begin, view.shown, alone=alone)[0]
        at, mine = view.beside(after)
        if at is None:
            raise _unlike(i)
        follow = view.shown[at : view.next_run(at)]
        if self._template.opening and follow.startswith(mine):
            return at + self._ended(mine, 0, follow, alone=alone)[0]
        end = self._turn_end(mine, follow, self._inner(view, i, begin) - at)
        if end is None:
            raise _unlike(i)
        return at + end

    def _last_end(self, view: _View, i: int, begin: int) -> int:
        """What ends the last turn: not what the template writes behind every conversation."""
        for other in view.followed():
            if other.startswith(view.shown):
                end, behind = self._ended(view.shown, begin, other)
                view.append(behind)
                return end
            place, follow = view.beside(view.shown, other)
            if place is None:
                continue
            at = len(view.shown) - len(follow)
            tail = other[place:]
            if self._template.opening and tail.startswith(follow):
                view.append(self._ended(follow, 0, tail)[1])
                return len(view.shown)
            ended = self._turn_end(tail, follow, self._inner(view, i, begin) - at)
            if ended is not None:
                return at + ended
        end, _ = self._ended(view.shown, begin, view.shown)
        if self._template.opening and end == len(view.shown):
            view.append(self._template.opening)
            return len(view.shown)
        return end

    def _ended(self, text: str, begin: int, whole: str, *, alone: bool = False) -> tuple[int, str]:
        """Where the turn ends with which `text` does, and the token that stands there in `whole`
        but not in `text`.

        White space behind an end-of-turn token belongs to the template, not to the model. Where
        turns have no such token, the one with which the next turn opens ends them, as in GLM's;
        not one that opens another answer (`alone`), behind which the model would answer again.
        """
        turn = text[begin:].rstrip()
        own = self._control.match(whole, len(text))
        opens = own is not None and own[0] in self._specials and not alone
        if own and opens and (self._template.opening or not self.ends_turn(turn)):
            return own.end(), own[0]
        return (begin + len(turn) if self.ends_turn(turn) else len(text)), ""

    def _turn_end(self, other: str, follow: str, inner: int) -> int | None:
        """Where a turn ends in what follows its last word, compared with what follows the same word
        in another conversation, in which the turn is (or is not) the last; None if nothing ends
        it. Up to `inner` it is not ended."""
        common = self._template.agreement(other, follow)
        inner = min(max(inner, 0), common)
        shared = follow[inner:common].rstrip()
        if self.ends_turn(shared):
            return inner + len(shared)
        if other and common == len(other):
            return common
        one, own = (self._control.match(text, common) for text in (other, follow))
        # Each has an end of its own, or this one alone, behind nothing but white space.
        if own and (one or (own[0] in self._specials and not shared)):
            return own.end()
        return common or None

    def _inner(self, view: _View, i: int, begin: int) -> int:
        """Up to where a turn that says nothing is not ended: what the template opens turns with."""
        if view.speaks(i) or not self._opening:
            return 0
        is_there = view.shown.startswith(self._opening, begin)
        return begin + len(self._opening) * is_there

    @functools.cached_property
    def _opening(self) -> str:
        """What the template writes in a turn before a plain answer, such as its channel."""
        try:
            text, spans, _ = self._look([*SAMPLE, SAMPLE[0]], None, frozenset())
            return text[spans[1][0] :].partition(SAMPLE[1]["content"])[0]
        except (BadRecord, KeyError):
            return ""


class _View:
    """A conversation, its text, and whose each character is."""

    def __init__(
        self,
        template: ChatTemplate,
        messages: list[Message],
        tools: list[Message] | None,
        text: str,
        painted: Painted,
        shown: str,
    ) -> None:
        self.messages = messages
        self.text = text
        self.shown = shown
        self._template = template
        self._tools = tools
        self._painted = painted
        self.switches: tuple[str, ...] = ()
        """What in the system message the template may look for."""
        self.runs = list(painted.runs(shown))
        self._owners = [self._owner(run) for run in self.runs]

    def gaps(self, i: int) -> _Gaps | None:
        """The text before the first word of message `i` and behind its last; None if it has no
        words, or others' among them."""
        count = self._owners.count(i)
        first = self._owners.index(i) if count else 0
        last = first + count - 1
        if not count or self._owners[last] != i:
            return None
        before = self.runs[first - 1].end if first else 0
        after = self.runs[last + 1].begin if last + 1 < len(self.runs) else len(self.shown)
        near = [self.messages[n]["role"] if n < len(self.messages) else "" for n in (i - 1, i + 1)]
        told = tuple(name for name, value in self.messages[i].items() if value)
        kind = (i == 0, *near, told, self._painted.keep)
        return _Gaps(kind, (before, self.runs[first].begin), (self.runs[last].end, after))

    def beginning(self, end: int, *, prompt: bool) -> str | None:
        """The first `end` messages with stand-ins; None if the template refuses them."""
        return self._render(self._painted.messages[:end], prompt)

    def followed(self) -> Iterator[str]:
        """All messages and one more, such as may follow the last, as far as the template takes
        it."""
        last = self._painted.messages[-1]
        following: list[Message] = [{"role": "user", "content": "x"}]
        if last.get("tool_calls"):
            call = last["tool_calls"][0]
            function = call.get("function") if isinstance(call, dict) else None
            names = {"name": function.get("name")} if isinstance(function, dict) else {}
            ids = {"tool_call_id": call["id"]} if isinstance(call, dict) and call.get("id") else {}
            following.insert(0, {"role": "tool", "content": "x", **names, **ids})
        for message in following:
            text = self._render([*self._painted.messages, message], False)
            if text:
                yield text

    def append(self, text: str) -> None:
        """Put a token behind the whole."""
        self.text += text
        self.shown += text

    def _render(self, messages: list[Message], prompt: bool) -> str | None:
        try:
            return self._template.render(messages, self._tools, prompt)[0]
        except BadRecord:
            return None if messages else ""  # many templates look at the first message unasked

    def beside(self, text: str, other: str | None = None) -> tuple[int | None, str]:
        """Where in the whole (or `other`) the last word of `text` ends, and what follows it there.

        None if the whole lacks it.
        """
        runs = list(self._painted.runs(text))
        if not runs:
            return 0, text
        color = runs[-1].color
        number = sum(run.color == color for run in runs)
        whole = self.runs if other is None else self._painted.runs(other)
        same = [run for run in whole if run.color == color]
        place = same[number - 1].end if len(same) >= number else None
        return place, text[runs[-1].end :]

    def next_run(self, at: int) -> int:
        """Where the next word begins at or after `at`; the end if there is none."""
        return next((run.begin for run in self.runs if run.begin >= at), len(self.shown))

    def speaks(self, i: int) -> bool:
        """Whether any word of message `i` is written."""
        return any(self._owner(run) == i for run in self.runs)

    def speaker(self, span: Span) -> int | None:
        """The message of the assistant whose words come first in a span."""
        owners = (self._owner(run) for run in self._within(span))
        return next((i for i in owners if self.messages[i]["role"] == "assistant"), None)

    def are_marked(self, answers: list[int], spans: Sequence[Span]) -> bool:
        """Whether spans hold something of each answer that is written; of one without words it
        shows in their number alone."""
        marked = {self._owner(run) for span in spans for run in self._within(span)}
        spoken = [i for i in answers if self.speaks(i)]
        counted = spoken == answers or len(spans) >= len(answers)
        return counted and marked.issuperset(spoken)

    def require_own(self, spans: Mapping[int, Span], learned: Collection[int]) -> None:
        """`BadRecord` if a span holds what a message says that is not `learned`."""
        for i, span in spans.items():
            for run in self._within(span):
                owner = self._owner(run)
                if owner != i and owner not in learned:
                    role = self.messages[owner]["role"]
                    raise BadRecord(
                        f"the chat template puts what message {owner + 1} ({role}) says into what "
                        "the model is to learn",
                        hint="mark what is learned in the template with {% generation %}..."
                        "{% endgeneration %} (model.chat_template=FILE)",
                    )

    def left_out(self, spans: Mapping[int, Span], learned: Sequence[int]) -> list[tuple[int, str]]:
        """(message, kind) of all that turns that are learned say outside of the spans."""
        found = self._counts(spans.values())
        missing = {
            (said.message, said.kind)
            for color, said in self._painted.said.items()
            if said.message in learned and found.get(color, 0) < said.size
        }
        # Where not even the arguments are written, the call as a whole is not.
        missing -= {(i, NAMES) for i, kind in missing if kind == CALLS}
        return sorted(missing, key=lambda entry: (entry[0], KINDS.index(entry[1])))

    def is_lost(self, i: int, span: Span) -> bool:
        """Whether a turn says something and its span holds none of it."""
        own = [said for said in self._painted.said.values() if said.message == i and said.size]
        found = self._counts([span])
        return bool(own) and not any(said.color in found for said in own)

    def _counts(self, spans: Iterable[Span]) -> dict[str, int]:
        counts: dict[str, int] = {}
        for span in spans:
            for run in self._within(span):
                inside = max(run.begin, span[0]), min(run.end, span[1])
                counts[run.color] = counts.get(run.color, 0) + self.shown.count(run.color, *inside)
        return counts

    def _within(self, span: Span) -> list[Run]:
        return [run for run in self.runs if run.begin < span[1] and run.end > span[0]]

    def _owner(self, run: Run) -> int:
        return self._painted.said[run.color].message


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
            found.append(Chat(chat.messages[:end], chat.tools, silent))
    return found


def _silenced(message: Message) -> Message:
    if message["role"] != "assistant":
        return message
    kept = {key: value for key, value in message.items() if key not in THOUGHT_FIELDS}
    if isinstance(kept.get("content"), str):
        thought, rest = split_thoughts(kept["content"])
        kept["content"] = rest.lstrip("\n") if thought else rest
    return kept


def _finds(patterns: Sequence[re.Pattern[str] | None], messages: list[Message]) -> bool:
    tags = next((keep for keep in patterns if keep), None)
    said = (m.get("content") for m in messages if m["role"] == "assistant")
    return tags is not None and any(isinstance(text, str) and tags.search(text) for text in said)


def _after_empty_thought(text: str, span: Span) -> Span:
    match = _EMPTY_THOUGHT.match(text, span[0], span[1])
    return (match.end(), span[1]) if match else span


def _unlike(i: int) -> BadRecord:
    return BadRecord(
        f"the chat template writes message {i + 1} differently when others follow, so what the "
        "model is to learn cannot be told from the rest",
        hint="mark it in the template with {% generation %}...{% endgeneration %} "
        "(model.chat_template=FILE), or split the record after each assistant turn",
    )
