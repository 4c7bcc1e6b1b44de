"""The last number of an answer against that of the reference."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from launcher.graders.errors import Ungraded
from launcher.graders.grader import Grader, Setting
from launcher.graders.members import Members
from launcher.graders.sample import Sample

#: A number in a text, with thousands commas or not; a currency sign or unit may stand around it.
IN_TEXT = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|[-+]?\.\d+")


def last_number(text: str) -> Decimal | None:
    """The last number of a text; None if there is none."""
    found = None
    for found in IN_TEXT.finditer(text):  # noqa: B007 - only the last one is wanted
        pass
    return None if found is None else Decimal(found[0].replace(",", ""))


class NumericMatchGrader(Grader):
    """1 if the last number of the input is that of the reference, within a tolerance, else 0."""

    def __init__(self, members: Members, setting: Setting) -> None:
        """Read both texts and how far the numbers may be apart."""
        super().__init__(members, setting)
        self._input = members.template("input", "{{ sample.output_text }}")
        self._reference = members.template("reference")
        self._absolute = Decimal(str(members.number("tolerance", 0.0, least=0.0)))
        self._relative = Decimal(str(members.number("relative_tolerance", 0.0, least=0.0)))

    def score(self, item: Mapping[str, Any], sample: Sample) -> float:
        """1 or 0; an input without a number is wrong, a reference without one is a error."""
        reference = self._reference.fill(item, sample)
        wanted = last_number(reference)
        if wanted is None:
            message = f"no number in the reference {reference[:100]!r}"
            raise Ungraded("invalid_variable_error", message)
        number = last_number(self._input.fill(item, sample))
        if number is None:
            return 0.0
        return float(abs(number - wanted) <= max(self._absolute, self._relative * abs(wanted)))
