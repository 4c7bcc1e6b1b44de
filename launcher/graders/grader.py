"""The grader seam: what is asked of a grader, and what it says of an answer.

To add one: a file with a subclass, a row in `launcher.graders.wire.GRADERS`, a test.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from launcher.config.schema import EvalConfig, GradersConfig, JudgeConfig
from launcher.core.errors import Problem
from launcher.graders.errors import GradingError, Ungraded
from launcher.graders.members import Members
from launcher.graders.sample import Sample
from launcher.graders.template import TemplatePlace
from launcher.graders.usage import Usage

#: An item of the data, and what a model answered to it.
Pair = tuple[Mapping[str, Any], Sample]

#: Scores go from minus this to this: training squares them, and sums what comes of it.
MAX_SCORE = 1e6

_SIGN_OF_LIFE_S = 1.0


@dataclass(frozen=True, slots=True)
class Grade:
    """What a grader says of one answer.

    `score` is within the grader's range; None if there is none, and then `errors` says why. Errors
    may also stand beside a score: an answer that is no JSON where JSON is read has the lowest one.
    """

    score: float | None
    errors: tuple[GradingError, ...] = ()
    sub_scores: Mapping[str, float | None] = field(default_factory=dict)
    """Of a grader of several: each one's score by its name."""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    """What else is known, as JSON: a judge's reply, the output of a test."""
    seconds: float = 0.0
    """Time spent on this answer; in a batch that is computed together, its share."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a grader needs that is not in its wire form, as it belongs to the place it runs at."""

    judge: JudgeConfig = field(default_factory=JudgeConfig)
    """The endpoint of graders that ask a model; the model's name is the grader's own."""
    judges: Mapping[str, JudgeConfig] | None = None
    """Name of a model -> its endpoint, and no model beside them; None: `judge` has all."""
    limits: GradersConfig = field(default_factory=GradersConfig)
    """Limits of graders that run code."""
    folder: Path = Path()
    """Where relative paths begin."""

    @classmethod
    def of(cls, options: EvalConfig) -> Setting:
        """That of a run."""
        judges = {name: JudgeConfig(**members) for name, members in options.endpoints.items()}
        return cls(options.judge, judges or None, options.graders)


class Grader(ABC):
    """Scores answers; may be asked from several threads."""

    #: the least and the highest score.
    range: tuple[float, float] = (0.0, 1.0)
    #: answers that are graded at a time.
    at_once: int = 1

    def __init__(self, members: Members, setting: Setting) -> None:
        """Read the wire form; problems are noted in `members`."""
        self.name = members.text("name")
        self.setting = setting
        self._wire = deepcopy(members.content)
        self._templates = members.templates

    @abstractmethod
    def score(self, item: Mapping[str, Any], sample: Sample) -> float | Grade:
        """The score of one answer; raises `Ungraded` if it has none."""

    def grade(self, item: Mapping[str, Any], sample: Sample | Mapping[str, Any] | str) -> Grade:
        """What is said of one answer, given as text, as a mapping with `output_text`, or read."""
        return self.grade_all([(item, Sample.of(sample))])[0]

    def grade_all(
        self, pairs: Sequence[Pair], alive: Callable[[], None] = lambda: None
    ) -> list[Grade]:
        """A grade for each pair, in their order, whatever happens to single ones.

        At most `at_once` are graded at a time; `alive` is called about once a second meanwhile.
        """
        if self.at_once == 1 or len(pairs) < 2:
            return [self._graded(*pair) for pair in _watched(pairs, alive)]
        with ThreadPoolExecutor(min(self.at_once, len(pairs)), "grader") as pool:
            futures = [pool.submit(self._graded, *pair) for pair in pairs]
            pending = set(futures)
            try:
                while pending:
                    done, pending = wait(pending, _SIGN_OF_LIFE_S, FIRST_EXCEPTION)
                    for future in done:
                        future.result()  # what is no error of a single answer ends them all
                    alive()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                self.close()  # whoever waits for a new try gives up
                raise
        return [future.result() for future in futures]

    def _graded(self, item: Mapping[str, Any], sample: Sample) -> Grade:
        start = time.perf_counter()
        try:
            found = self.score(item, sample)
            grade = found if isinstance(found, Grade) else Grade(found)
        except Ungraded as error:
            grade = self._without_score(error)
        return replace(self._checked(grade), seconds=time.perf_counter() - start)

    def _without_score(self, error: Ungraded) -> Grade:
        """What the answer is to blame for costs it the score; else nobody knows one."""
        lowest = self.range[0] if error.error.is_of_answer else None
        score = lowest if lowest is not None and math.isfinite(lowest) else None
        return Grade(score, (error.error,), metadata=error.metadata)

    def _checked(self, grade: Grade) -> Grade:
        """The grade, without a score that is no number or out of range."""
        score, low, high = grade.score, *self.range
        low, high = max(low, -MAX_SCORE), min(high, MAX_SCORE)
        if score is None or (math.isfinite(score) and low <= score <= high):
            return grade
        wrong = f"not within {low:,.10g} to {high:,.10g}" if math.isfinite(score) else "no number"
        error = GradingError("other_error", f"a score of {score}, which is {wrong}")
        return replace(grade, score=None, errors=(*grade.errors, error))

    @cached_property
    def places(self) -> list[TemplatePlace]:
        """All places of the templates."""
        return [place for template in self._templates for place in template.places]

    @cached_property
    def _read_of_items(self) -> list[TemplatePlace]:
        """What is read of an item, each once."""
        found: dict[tuple[str | int, ...], TemplatePlace] = {}
        for place in self.places:
            if place.root == "item":
                found.setdefault(place.key, place)
        return list(found.values())

    def missing(self, item: Mapping[str, Any]) -> list[str]:
        """What the templates name and an item lacks, such as `item.answer`."""
        return [place.text for place in self._read_of_items if not place.is_in(item)]

    def check(self, items: Iterable[tuple[str, Mapping[str, Any]]]) -> Iterator[Problem]:
        """What the templates name and an item lacks, for each item and where it stands."""
        for where, item in items:
            for path in self.missing(item):
                found = f"no field {path}, which the grader {self.name} reads"
                known = ", ".join(sorted(map(str, item))) or "no fields"
                yield Problem(where, found, f"it has {known}: mend the template, or the data")

    def to_wire(self) -> dict[str, Any]:
        """The wire form, as it was given."""
        return deepcopy(self._wire)

    def usage(self) -> Mapping[str, Usage]:
        """Tokens of the models that were asked so far, by their names."""
        return {}

    def close(self) -> None:  # noqa: B027 - most hold nothing
        """Let go of what waits for the next answer; it starts again with that one."""


def _watched(pairs: Sequence[Pair], alive: Callable[[], None]) -> Iterator[Pair]:
    last = time.monotonic()
    for pair in pairs:
        if time.monotonic() - last > _SIGN_OF_LIFE_S:
            alive()
            last = time.monotonic()
        yield pair
