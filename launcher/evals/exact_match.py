"""Exact match of generated answers."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from launcher.config.schema import EvalConfig
from launcher.errors import ConfigError
from launcher.evals.metric import Floats, Metric
from launcher.evals.records import Generation

#: a whole text that is one number, with thousands commas or not, perhaps ended by a full stop.
NUMBER = re.compile(r"[-+]?(\d{1,3}(,\d{3})+|\d+|(?=\.\d))(\.\d*)?")


def normalise(text: str) -> str:
    """Strip white space; from a number also thousands commas and a trailing dot."""
    text = text.strip()
    if NUMBER.fullmatch(text):
        return text.replace(",", "").removesuffix(".")
    return text


class ExactMatch(Metric[Generation]):
    """Share of answers equal to the reference, compared by `eval.answer_pattern`.

    A record whose reference has no match cannot be judged and does not count; an answer without a
    match is wrong.
    """

    name = "exact_match"
    needs = "generation"
    higher_is_better = True
    unit = "share"

    def __init__(self, config: EvalConfig) -> None:
        """Compile the pattern; `ConfigError` if it is not a regular expression."""
        super().__init__(config)
        try:
            self.pattern = re.compile(config.answer_pattern) if config.answer_pattern else None
        except re.error as error:
            raise ConfigError(
                f"{config.answer_pattern!r} is not a regular expression: {error}",
                where="eval.answer_pattern",
                hint="escape special characters with a backslash, e.g. '\\$([0-9]+)'",
            ) from error

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

    def values(self, records: Sequence[Generation]) -> tuple[Floats, Floats]:
        """1 for each right answer, 1 for each record that can be judged, each [records]."""
        matches = [self.match(record.answer, record.reference) for record in records]
        return (
            np.array([match is True for match in matches], dtype=np.float64),
            np.array([match is not None for match in matches], dtype=np.float64),
        )
