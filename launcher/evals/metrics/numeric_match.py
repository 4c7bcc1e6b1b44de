"""Match of generated numbers."""

from __future__ import annotations

from launcher.evals.metrics.exact_match import ExactMatch
from launcher.graders.numeric_match import last_number


class NumericMatch(ExactMatch):
    """Share of answers whose number has the value of the reference's: 72, 72.0 and $72 are one.

    The number is the last one in what `eval.answer_pattern` finds, or in the whole text without it.
    """

    name = "numeric_match"

    def extract(self, text: str) -> str | None:
        """The number in a form that equal numbers share."""
        found = super().extract(text)
        number = last_number(found) if found is not None else None
        return None if number is None else f"{number.normalize() + 0:f}"
