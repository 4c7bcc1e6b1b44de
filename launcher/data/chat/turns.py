"""Where the assistant's turns lie in the text that a chat template makes of a conversation.

The whole is compared with renderings of its beginnings. Where these differ, as templates write the
last turn in another way than earlier ones (another end, text behind it, its thoughts), they are
laid beside each other at the last text that both have (see `launcher.data.chat.provenance`). By the
same means it is seen, character by character, whose words a span holds.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from launcher.data.chat.provenance import (
    CALLS,
    KINDS,
    NAMES,
    TOOLS,
    WHOLE,
    Painted,
    Run,
    looked_for,
    same_but_painted,
)
from launcher.data.chat.template import SAMPLE, ChatTemplate, Message, Span
from launcher.data.formats.base import BadRecord

_DIGITS = re.compile(r"\d+")
#: Turns between so many different marks are found again.
_MOST = 4096


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


class TurnFinder:
    """Finds turns in what one template writes."""

    def __init__(self, template: ChatTemplate) -> None:
        self._template = template
        self._specials = template.specials
        self._control = template.control
        self._borders: dict[tuple[Any, ...], _Borders] = {}

    def ends_turn(self, text: str) -> bool:
        """Whether `text` ends with a special token, at which generation can stop."""
        return text.endswith(self._specials)

    def view(self, messages: list[Message], tools: list[Message] | None, text: str) -> View:
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
                found = View(self._template, messages, tools, text, painted, shown)
                if switch := self._switch(bool(tools)):
                    others = (m.get("content") for m in messages if m["role"] != "assistant")
                    texts = [text for text in others if isinstance(text, str)]
                    found.switches = tuple(word for text in texts for word in switch.findall(text))
                return found
        raise BadRecord(
            "it cannot be told who says what in what the chat template makes of the conversation",
            hint="give a template that writes texts as they are with model.chat_template=FILE",
        )

    def are_switched(self, values: Iterable[Any], tools: list[Message] | None) -> bool:
        """Whether any of these texts has what the template may look for."""
        switch = self._switch(bool(tools))
        return switch is not None and any(isinstance(v, str) and switch.search(v) for v in values)

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
    def _switch(self, with_tools: bool) -> re.Pattern[str] | None:
        """Finds what the template looks for in texts: tags, or words where it looks for no tag."""
        tags, words = self._looked_for(with_tools)
        texts = tags or words
        return re.compile("|".join(map(re.escape, texts))) if texts else None

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one or two answers an object
    def _looked_for(self, with_tools: bool) -> tuple[list[str], list[str]]:
        source = self._template.source([{}] if with_tools else None)
        return looked_for(source, words=False), looked_for(source, words=True)

    def bounded(self, view: View, span: Span, i: int) -> Span:
        """The span of a generation block without a generation prompt or the next turn's opening
        that it holds, and up to the end-of-turn token, which it may leave out or have white space
        behind."""
        begin, end = span
        if i < 0:
            return span
        try:
            own_begin, own_end = self.locate(view, i)
        except BadRecord:
            return span
        if begin < own_begin < end:
            begin = own_begin
        if begin < own_end < view.next_run(own_end) <= min(end, len(view.shown) - 1):
            end = own_end
        turn = view.text[begin:end].rstrip()
        if self.ends_turn(turn):
            return begin, begin + len(turn)
        return begin, own_end if view.text[end:own_end].strip() in self._specials else end

    def locate(self, view: View, i: int) -> Span:
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

    def _compared(self, view: View, i: int) -> Span:
        begin = self._begin(view, i)
        return begin, max(begin, self._end(view, i, begin))

    def _begin(self, view: View, i: int) -> int:
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

    def _end(self, view: View, i: int, begin: int) -> int:
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

    def _last_end(self, view: View, i: int, begin: int) -> int:
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

    def _inner(self, view: View, i: int, begin: int) -> int:
        """Up to where a turn that says nothing is not ended: what the template opens turns with."""
        if view.speaks(i) or not self._opening:
            return 0
        is_there = view.shown.startswith(self._opening, begin)
        return begin + len(self._opening) * is_there

    @functools.cached_property
    def _opening(self) -> str:
        """What the template writes in a turn before a plain answer, such as its channel."""
        try:
            text, _ = self._template.render([*SAMPLE, SAMPLE[0]], None)
            begin, end = self.locate(self.view([*SAMPLE, SAMPLE[0]], None, text), 1)
            return text[begin:end].partition(SAMPLE[1]["content"])[0]
        except BadRecord:
            return ""


class View:
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
        """What others say that the template may look for."""
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
        """(message, kind) of all that turns that are learned say outside of the spans, and of what
        is written nowhere of what others say; tools are of no message, -1."""
        found = self._counts(spans.values())
        missing = {
            (said.message, said.kind)
            for color, said in self._painted.said.items()
            if said.message in learned and found.get(color, 0) < said.size
        }
        # Where not even the arguments are written, the call as a whole is not.
        missing -= {(i, NAMES) for i, kind in missing if kind == CALLS}
        missing |= self._unheard()
        return sorted(missing, key=lambda entry: (entry[0], KINDS.index(entry[1])))

    def _unheard(self) -> set[tuple[int, str]]:
        """What nothing is written of: turns of others than the assistant, and tools."""
        heard: dict[int, bool] = {}
        for said in self._painted.said.values():
            if said.size and self.messages[said.message]["role"] != "assistant":
                is_written = heard.get(said.message, False) or said.color in self.shown
                heard[said.message] = is_written
        found = {(i, WHOLE) for i, is_written in heard.items() if not is_written}
        if self._tools:
            try:
                without = self._template.render(self._painted.messages, None)[0]
            except BadRecord:
                without = None
            # Behind it may stand the token that ends the last turn.
            if without and self.shown.startswith(without):
                found.add((-1, TOOLS))
        return found

    def is_lost(self, i: int, span: Span) -> bool:
        """Whether a turn says something and its span holds none of it."""
        if i in self._painted.unpainted:
            return False
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


def _finds(patterns: Sequence[re.Pattern[str] | None], messages: list[Message]) -> bool:
    tags = next((keep for keep in patterns if keep), None)
    said = (message.get("content") for message in messages)
    return tags is not None and any(isinstance(text, str) and tags.search(text) for text in said)


def _unlike(i: int) -> BadRecord:
    return BadRecord(
        f"the chat template writes message {i + 1} differently when others follow, so what the "
        "model is to learn cannot be told from the rest",
        hint="mark it in the template with {% generation %}...{% endgeneration %} "
        "(model.chat_template=FILE), or split the record after each assistant turn",
    )
