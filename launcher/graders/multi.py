"""One score of several graders' scores, by a formula."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from launcher.core.errors import ConfigError, Problem
from launcher.graders.errors import GradingError
from launcher.graders.formula import FUNCTIONS, Formula
from launcher.graders.grader import Grade, Grader, Pair, Setting
from launcher.graders.members import Members
from launcher.graders.sample import Sample
from launcher.graders.template import MAX_PLACES, TemplatePlace, too_many_places
from launcher.graders.usage import Usage
from launcher.graders.wire import from_wire

MAX_GRADERS = 20


class MultiGrader(Grader):
    """What the formula makes of the scores; any number. Without one of those that it names, the
    answer has no score."""

    range = (float("-inf"), float("inf"))

    def __init__(self, members: Members, setting: Setting) -> None:
        """Read the graders, none of which may be such a one itself, and the formula."""
        super().__init__(members, setting)
        self.graders = {
            name: from_wire(value, setting, members.at(f"graders.{name}"))
            for name, value in _named(members).items()
        }
        if len(self.places) > MAX_PLACES:
            members.complain("graders", *too_many_places())
        text = members.text("calculate_output")
        self._formula: Formula | None = None
        try:
            self._formula = Formula(text, self.graders, members.at("calculate_output"))
        except ConfigError as error:
            for problem in error.problems if text else ():
                members.complain("calculate_output", problem.found, problem.hint)

    def score(self, item: Mapping[str, Any], sample: Sample) -> Grade:
        """That of one answer."""
        return self.grade_all([(item, sample)])[0]

    def grade_all(
        self, pairs: Sequence[Pair], alive: Callable[[], None] = lambda: None
    ) -> list[Grade]:
        """One grader after the other, each over all pairs: each has its own way to be quick."""
        columns = [grader.grade_all(pairs, alive) for grader in self.graders.values()]
        return [self._joined(grades) for grades in zip(*columns, strict=True)]

    def _joined(self, grades: Sequence[Grade]) -> Grade:
        start = time.perf_counter()
        found = dict(zip(self.graders, grades, strict=True))
        scores = {name: grade.score for name, grade in found.items()}
        errors = tuple(
            replace(error, message=f"{name}: {error.message}")
            for name, grade in found.items()
            for error in grade.errors
        )
        score, assembled = self._value(scores)
        metadata = {name: dict(grade.metadata) for name, grade in found.items() if grade.metadata}
        seconds = sum(grade.seconds for grade in grades) + time.perf_counter() - start
        return self._checked(Grade(score, errors + assembled, scores, metadata, seconds))

    def _value(
        self, scores: Mapping[str, float | None]
    ) -> tuple[float | None, tuple[GradingError, ...]]:
        assert self._formula is not None
        known = {name: score for name, score in scores.items() if score is not None}
        if not self._formula.names <= known.keys():
            return None, ()
        try:
            return self._formula.value(known), ()
        except (ArithmeticError, ValueError) as error:
            return None, (GradingError("formula_parse_error", f"{error} with {known}"),)

    @cached_property
    def places(self) -> list[TemplatePlace]:
        """Those of all graders."""
        return [place for grader in self.graders.values() for place in grader.places]

    def usage(self) -> dict[str, Usage]:
        """That of all together: two may ask one model."""
        found: dict[str, Usage] = {}
        for grader in self.graders.values():
            for model, used in grader.usage().items():
                found[model] = found.get(model, Usage()) + used
        return found

    def check(self, items: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[Problem]:
        """What each of the graders finds."""
        known = list(items)
        for grader in self.graders.values():
            yield from grader.check(known)

    def close(self) -> None:
        """Close all."""
        for grader in self.graders.values():
            grader.close()


def _named(members: Members) -> dict[str, Any]:
    """The graders by name: an object of them, or one alone, as the API's types have it."""
    found = members.mapping("graders")
    if isinstance(found.get("type"), str):
        found = {str(found.get("name")): found}
    if not 0 < len(found) <= MAX_GRADERS:
        members.complain("graders", f"{len(found)} graders", f"give one to {MAX_GRADERS}")
    kept = {}
    for name, value in found.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", str(name)) or name in FUNCTIONS:
            hint = "a name has letters, digits and _, and is none of " + ", ".join(FUNCTIONS)
            members.complain("graders", f"{name!r} cannot stand in a formula", hint)
        elif isinstance(value, Mapping) and value.get("type") == "multi":
            hint = "write its formula into this one's"
            members.complain(f"graders.{name}", "a multi grader in a multi grader", hint)
        else:
            kept[name] = value
    return kept
