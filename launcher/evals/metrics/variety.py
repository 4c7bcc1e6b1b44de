"""Variety of generated answers: how much of an answer is new. References are not looked at."""

from __future__ import annotations

from typing import ClassVar

from launcher.evals.metric import Mean


class Distinct(Mean):
    """Mean share of an answer's pairs of words that differ from one another.

    Source: Li et al. 2016, "A diversity-promoting objective function", by answer, so that long
    answers do not count as dull. Answers of one word do not count.
    """

    name = "distinct"
    run: ClassVar[int] = 2

    def of(self, answer: str, reference: str) -> float | None:
        """Share in 0..1; None for an answer with less than two runs."""
        share = distinct(answer, self.run)
        return share if share is None else self._told(share)

    def _told(self, share: float) -> float:
        return share


class Repetition(Distinct):
    """Mean share of an answer's runs of four words that were in it before: 0 is best.

    It rises where a model goes round in circles.
    """

    name = "repetition"
    higher_is_better = False
    run = 4

    def _told(self, share: float) -> float:
        return 1 - share


def distinct(text: str, n: int) -> float | None:
    """Different runs of `n` words of a text, as a share of all; None if there are less than two."""
    words = text.split()
    runs = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return len(set(runs)) / len(runs) if len(runs) > 1 else None
