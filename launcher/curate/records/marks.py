"""What can be wrong with one record, by the name of the rule that counts it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from launcher.curate.records import personal, texts
from launcher.curate.records.record import DOCUMENT, SYSTEM_ROLES, Record
from launcher.curate.records.texts import Flaw

#: The text in which something was found, and what and where it is.
Mark = tuple[str, Flaw]

#: Who may speak after whom; a tool answers the assistant, and parallel calls have several answers.
_NEXT = {
    "start": {"user", "assistant"},
    "user": {"assistant"},
    "assistant": {"user", "tool", "function"},
    "tool": {"assistant", "tool"},
    "function": {"assistant", "function"},
}


def _anywhere(find: Callable[[str], Flaw | None]) -> Callable[[Record], Mark | None]:
    def mark(record: Record) -> Mark | None:
        found = find(record.everything)
        return (record.everything, found) if found else None

    return mark


def _in_answers(find: Callable[[str], Flaw | None]) -> Callable[[Record], Mark | None]:
    def mark(record: Record) -> Mark | None:
        for answer in record.answers:
            if found := find(answer):
                return answer, found
        return None

    return mark


def _markup(record: Record) -> Mark | None:
    for answer in record.answers:
        found = texts.markup(answer, record.prompt) or texts.fences(answer)
        if found:
            return answer, found
    return None


def _empty(record: Record) -> Mark | None:
    for number, answer in enumerate(record.answers, 1):
        # What a class is called is no empty answer, whatever it is called.
        if record.label is None and texts.says_nothing(answer):
            which = (
                f"answer {number} of {len(record.answers)}" if len(record.answers) > 1 else "answer"
            )
            return record.text, Flaw(f"the {which} says nothing: {answer!r}", 0, 0)
    return None


def _blanks(record: Record) -> Mark | None:
    """Both answers say the same, but for white space."""
    if record.rejected is None or record.answer.split() != record.rejected.split():
        return None
    return record.text, Flaw("both answers say the same, but for white space", 0, 0)


def _turns(record: Record) -> Mark | None:
    spoken = [role for role in record.roles if role not in SYSTEM_ROLES]
    if spoken == [DOCUMENT] or not spoken:
        return None
    for before, role in zip(["start", *spoken], spoken, strict=False):
        if before in _NEXT and role not in _NEXT[before]:
            why = f"begins with {role}" if before == "start" else f"{role} speaks after {before}"
            return record.text, Flaw(why, 0, 0)
    if spoken[-1] != "assistant" and not record.is_asked:
        return record.text, Flaw(f"ends with {spoken[-1]}, who is not answered", 0, 0)
    return None


def _private(rule: str) -> Callable[[Record], Mark | None]:
    def mark(record: Record) -> Mark | None:
        for span in personal.private_spans(record.everything):
            if span.rule == rule:
                return record.everything, Flaw(f"{_article(span.kind)}", span.begin, span.end)
        return None

    return mark


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeioAEI' else 'a'} {kind}"


MARKS: dict[str, Callable[[Record], Mark | None]] = {
    "empty_answers": _empty,
    "unbalanced_turns": _turns,
    "mojibake": _anywhere(texts.mojibake),
    "control_characters": _anywhere(texts.control),
    "markup": _markup,
    "repetition": _in_answers(texts.repetition),
    "refusals": _in_answers(texts.refusal),
    "blank_differences": _blanks,
    personal.PERSONAL: _private(personal.PERSONAL),
    personal.SECRET: _private(personal.SECRET),
}
BITS = {name: 1 << number for number, name in enumerate(MARKS)}


def flags(record: Record) -> int:
    """All marks of a record as bits (see `BITS`)."""
    return sum(BITS[name] for name in _found(record))


def _found(record: Record) -> Iterator[str]:
    for name, mark in MARKS.items():
        if name not in (personal.PERSONAL, personal.SECRET) and mark(record):
            yield name
    yield from {span.rule for span in personal.private_spans(record.everything)}
