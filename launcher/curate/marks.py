"""What can be wrong with one record, by the name of the rule that counts it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from launcher.curate import personal, texts
from launcher.curate.item import DOCUMENT, SYSTEM_ROLES, Item
from launcher.curate.texts import Finding

#: The text in which something was found, and what and where it is.
Mark = tuple[str, Finding]

#: Who may speak after whom; a tool answers the assistant, and parallel calls have several answers.
_NEXT = {
    "start": {"user", "assistant"},
    "user": {"assistant"},
    "assistant": {"user", "tool", "function"},
    "tool": {"assistant", "tool"},
    "function": {"assistant", "function"},
}


def _anywhere(find: Callable[[str], Finding | None]) -> Callable[[Item], Mark | None]:
    def mark(item: Item) -> Mark | None:
        found = find(item.everything)
        return (item.everything, found) if found else None

    return mark


def _in_answers(find: Callable[[str], Finding | None]) -> Callable[[Item], Mark | None]:
    def mark(item: Item) -> Mark | None:
        for answer in item.answers:
            if found := find(answer):
                return answer, found
        return None

    return mark


def _markup(item: Item) -> Mark | None:
    for answer in item.answers:
        found = texts.markup(answer, item.prompt) or texts.fences(answer)
        if found:
            return answer, found
    return None


def _empty(item: Item) -> Mark | None:
    for number, answer in enumerate(item.answers, 1):
        # What a class is called is no empty answer, whatever it is called.
        if item.label is None and texts.says_nothing(answer):
            which = f"answer {number} of {len(item.answers)}" if len(item.answers) > 1 else "answer"
            return item.text, Finding(f"the {which} says nothing: {answer!r}", 0, 0)
    return None


def _turns(item: Item) -> Mark | None:
    spoken = [role for role in item.roles if role not in SYSTEM_ROLES]
    if spoken == [DOCUMENT] or not spoken:
        return None
    for before, role in zip(["start", *spoken], spoken, strict=False):
        if before in _NEXT and role not in _NEXT[before]:
            why = f"begins with {role}" if before == "start" else f"{role} speaks after {before}"
            return item.text, Finding(why, 0, 0)
    if spoken[-1] != "assistant":
        return item.text, Finding(f"ends with {spoken[-1]}, who is not answered", 0, 0)
    return None


def _trace(rule: str) -> Callable[[Item], Mark | None]:
    def mark(item: Item) -> Mark | None:
        for trace in personal.traces(item.everything):
            if trace.rule == rule:
                return item.everything, Finding(f"{_article(trace.kind)}", trace.begin, trace.end)
        return None

    return mark


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeioAEI' else 'a'} {kind}"


MARKS: dict[str, Callable[[Item], Mark | None]] = {
    "empty_answers": _empty,
    "unbalanced_turns": _turns,
    "mojibake": _anywhere(texts.mojibake),
    "control_characters": _anywhere(texts.control),
    "markup": _markup,
    "repetition": _in_answers(texts.repetition),
    "refusals": _in_answers(texts.refusal),
    personal.PERSONAL: _trace(personal.PERSONAL),
    personal.SECRET: _trace(personal.SECRET),
}
BITS = {name: 1 << number for number, name in enumerate(MARKS)}


def flags(item: Item) -> int:
    """All marks of a record as bits (see `BITS`)."""
    return sum(BITS[name] for name in _found(item))


def _found(item: Item) -> Iterator[str]:
    for name, mark in MARKS.items():
        if name not in (personal.PERSONAL, personal.SECRET) and mark(item):
            yield name
    yield from {trace.rule for trace in personal.traces(item.everything)}
