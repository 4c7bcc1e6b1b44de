"""Two answers side by side: which words only one of them has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import SequenceMatcher

#: (text, whether only this side has it), one after the other.
Segments = list[tuple[str, bool]]

#: words and signs of a longer answer are not compared: that takes the square of their number.
LONGEST = 800
#: less alike answers have nothing in common that is worth showing.
ALIKE = 0.5


def marked(one: str, other: str) -> tuple[Segments, Segments]:
    """Both texts in segments; unmarked where they are equal, very long or altogether different."""
    words, others = _words(one), _words(other)
    plain = [(one, False)], [(other, False)]
    if one == other or max(len(words), len(others)) > LONGEST:
        return plain
    matcher = SequenceMatcher(None, words, others, autojunk=False)
    if matcher.ratio() < ALIKE:
        return plain
    steps = matcher.get_opcodes()
    left = _joined((words[a:b], kind != "equal") for kind, a, b, _, _ in steps)
    right = _joined((others[a:b], kind != "equal") for kind, _, _, a, b in steps)
    return left, right


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)


def _joined(parts: Iterable[tuple[list[str], bool]]) -> Segments:
    return [("".join(words), only_here) for words, only_here in parts if words]
