"""A grader as metric of generated answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from launcher.config.schema import EvalConfig
from launcher.config.schema.variants import GRADER, metric_name
from launcher.core.errors import DataError
from launcher.evals.metric import Floats, Ratio
from launcher.evals.records import Generation, TokenizedPrompt
from launcher.graders.grader import Grade, Grader, Setting
from launcher.graders.sample import Sample
from launcher.graders.wire import from_file

#: Record and answer -> the calls of tools in it, as a message has them.
Calls = Callable[[Mapping[str, Any], str], Sequence[Any]]
#: Problems of records that are told.
_MOST_PROBLEMS = 5


class Graded(Ratio[Generation]):
    """The mean score over the answers that have one.

    An item is the record as it stands in a JSON Lines file, and `prompt` and `reference` where the
    record has no such fields; of other files it is these two. Where no answer is written there is
    no `reference`.
    """

    higher_is_better = True

    def __init__(self, config: EvalConfig, name: str) -> None:
        """Read the file that is named; `ConfigError` if it is no grader."""
        super().__init__(config)
        self.name, self.path = metric_name(name), name.removeprefix(GRADER)
        self.grader = from_file(self.path, Setting.of(config))
        self.unit = "share" if self.grader.range == (0.0, 1.0) else ""
        self._grades: dict[tuple[int, str, str], Grade] = {}
        self.calls: Calls | None = None
        """Reads the calls of tools in an answer to a record, if somebody can."""

    @property
    def state(self) -> str:
        """The grader itself: its file may be changed."""
        form = json.dumps(self.grader.to_wire(), sort_keys=True)
        return hashlib.blake2b(form.encode(), digest_size=8).hexdigest()

    def check(self, prompts: Sequence[TokenizedPrompt]) -> None:
        """`DataError` where records lack what the grader reads."""
        fields = _fields(prompt.where for prompt in prompts)
        items = (
            (prompt.where, _item(fields, prompt.where, "", prompt.reference)) for prompt in prompts
        )
        if problems := list(islice(self.grader.check(items), _MOST_PROBLEMS)):
            raise DataError(problems)

    def values(self, records: Sequence[Generation]) -> tuple[Floats, Floats]:
        """Scores, and 1 for each answer that has one, each [records]."""
        new = {_key(own): own for own in records if _key(own) not in self._grades}
        if new:
            grades = grade(self.grader, [*new.values()], self.sign_of_life, self.calls)
            self._grades.update(zip(new, grades, strict=True))
        found = [self._grades[_key(record)].score for record in records]
        return (
            np.array([score or 0.0 for score in found], dtype=np.float64),
            np.array([score is not None for score in found], dtype=np.float64),
        )

    def forget(self) -> None:
        """Let go of all grades."""
        self._grades.clear()

    def notes(self) -> list[str]:
        """How many answers have no score, and why one of them has none."""
        failed = [grade for grade in self._grades.values() if grade.score is None]
        if not failed:
            return []
        why = next((error for grade in failed for error in grade.errors), None)
        told = f", e.g. {why.kind}: {why.message}" if why else ""
        return [f"{self.name}: {len(failed)} of {len(self._grades)} answers have no score{told}"]


def grade(
    grader: Grader,
    records: Sequence[Generation],
    alive: Callable[[], None] = lambda: None,
    calls: Calls | None = None,
) -> list[Grade]:
    """What a grader says of the answers to these records; see `Grader.grade_all`."""
    fields = _fields(record.where for record in records)
    items = [_item(fields, own.where, own.prompt, own.reference) for own in records]
    pairs = [
        (item, Sample(own.answer, tuple(calls(item, own.answer) if calls else ())))
        for item, own in zip(items, records, strict=True)
    ]
    try:
        return grader.grade_all(pairs, alive)
    finally:
        grader.close()


def _key(record: Generation) -> tuple[int, str, str]:
    return record.id, record.where, record.answer


def _item(
    fields: Mapping[str, Mapping[str, Any]], where: str, prompt: str, reference: str
) -> dict[str, Any]:
    # Nobody has written an answer that says nothing: there is none.
    beside = {"reference": reference} if reference else {}
    return {"prompt": prompt, **beside, **fields.get(where, {})}


def _fields(wheres: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`file:line` -> the record there, of those in JSON Lines files that are here."""
    wanted: dict[str, set[int]] = {}
    for where in wheres:
        path, _, line = where.rpartition(":")
        if path.endswith(".jsonl") and line.isdecimal() and Path(path).is_file():
            wanted.setdefault(path, set()).add(int(line))
    return {
        f"{path}:{number}": record
        for path, numbers in wanted.items()
        for number, record in _lines(path, numbers)
    }


def _lines(path: str, numbers: set[int]) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        for number, line in enumerate(islice(file, max(numbers)), start=1):
            if number in numbers:
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(record, dict):
                    yield number, record
