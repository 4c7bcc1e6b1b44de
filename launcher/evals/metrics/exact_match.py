"""Exact match of generated answers."""

from __future__ import annotations

import re

from launcher.config.schema import EvalConfig
from launcher.evals.metric import Mean

#: a whole text that is one number, with thousands commas or not, perhaps ended by a full stop.
NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+|(?=\.\d))(\.\d*)?")


def normalise(text: str) -> str:
    """Strip white space; from a number also thousands commas and a trailing dot."""
    text = text.strip()
    if NUMBER.fullmatch(text):
        return text.replace(",", "").removesuffix(".")
    return text


class ExactMatch(Mean):
    """Share of answers equal to the reference, compared by `eval.answer_pattern`.

    A record whose reference has no match cannot be judged and does not count; an answer without a
    match is wrong.
    """

    name = "exact_match"
    binary = True

    def __init__(self, config: EvalConfig) -> None:
        """Compile the pattern."""
        super().__init__(config)
        self.pattern = re.compile(config.answer_pattern) if config.answer_pattern else None

    def extract(self, text: str) -> str | None:
        """What is compared: group 1, or the whole, of the last match, normalised."""
        if self.pattern is None:
            return normalise(text)
        last = None
        for last in self.pattern.finditer(text):  # noqa: B007 - only the last one is wanted
            pass
        if last is None:
            return None
        # A group that took no part in the match is None.
        found = (last.group(1) or "") if self.pattern.groups else last.group()
        return normalise(found)

    def match(self, answer: str, reference: str) -> bool | None:
        """Whether `answer` is right; None if the reference has nothing to compare with."""
        wanted = self.extract(reference)
        return None if wanted is None else self.extract(answer) == wanted

    def of(self, answer: str, reference: str) -> float | None:
        """1 for a right answer, 0 for a wrong one; None as `match` gives it."""
        right = self.match(answer, reference)
        return None if right is None else float(right)
