"""Match of generated numbers."""

from __future__ import annotations

import re
from decimal import Decimal

from launcher.evals.metrics.exact_match import ExactMatch

#: A number in a text, with thousands commas or not; a currency sign or unit may stand around it.
IN_TEXT = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")


class NumericMatch(ExactMatch):
    """Share of answers whose number has the value of the reference's: 72, 72.0 and $72 are one.

    The number is the last one in what `eval.answer_pattern` finds, or in the whole text without it.
    """

    name = "numeric_match"

    def extract(self, text: str) -> str | None:
        """The number in a form that equal numbers share."""
        found = super().extract(text)
        numbers = IN_TEXT.findall(found) if found is not None else []
        if not numbers:
            return None
        value = Decimal(numbers[-1].replace(",", "")).normalize()
        return f"{value + 0:f}"
