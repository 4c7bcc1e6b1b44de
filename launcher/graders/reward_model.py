"""A reward model of ours as grader."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from launcher.core import registry
from launcher.core.errors import DataError
from launcher.core.runtime import user_path
from launcher.graders.errors import Ungraded
from launcher.graders.grader import Grade, Grader, Pair, Setting
from launcher.graders.members import Members
from launcher.graders.sample import Sample

#: What opens the model, which only a process that grades needs.
_MODEL = "launcher.inference.rewards:RewardModel"
#: Answers that are rewarded between two signs of life.
_CHUNK = 256


class RewardModelGrader(Grader):
    """The reward of the answer to a prompt, any number; of many answers in batches."""

    range = (float("-inf"), float("inf"))

    def __init__(self, members: Members, setting: Setting) -> None:
        """Read the folder's name; the model is opened with the first answer."""
        super().__init__(members, setting)
        self._prompt = members.template("prompt", "{{ item.prompt }}")
        self._input = members.template("input", "{{ sample.output_text }}")
        self._folder = setting.folder / user_path(members.text("model"))
        if (
            not (self._folder / "config.json").is_file()
            and not (self._folder / "adapter_config.json").is_file()
        ):
            hint = "give the export/ of a run with objective=reward"
            members.complain("model", f"{self._folder} is no folder of a model", hint)
        self._lock = threading.Lock()

    @cached_property
    def _model(self) -> Any:
        return registry.load(_MODEL)(self._folder)

    def score(self, item: Mapping[str, Any], sample: Sample) -> Grade:
        """The reward of one answer."""
        return self.grade_all([(item, sample)])[0]

    def grade_all(
        self, pairs: Sequence[Pair], alive: Callable[[], None] = lambda: None
    ) -> list[Grade]:
        """The rewards of all, in batches of answers of like length."""
        grades: list[Grade] = []
        for start in range(0, len(pairs), _CHUNK):
            alive()
            with self._lock:
                grades += self._rewarded(pairs[start : start + _CHUNK])
        return grades

    def _rewarded(self, pairs: Sequence[Pair]) -> list[Grade]:
        start = time.perf_counter()
        found = [self._tokens(*pair) for pair in pairs]
        rewards = iter(self._model.rewards([one for one in found if isinstance(one, list)]))
        grades = [Grade(next(rewards)) if isinstance(one, list) else one for one in found]
        seconds = (time.perf_counter() - start) / len(pairs)
        return [replace(self._checked(grade), seconds=seconds) for grade in grades]

    def _tokens(self, item: Mapping[str, Any], sample: Sample) -> list[int] | Grade:
        try:
            texts = self._prompt.fill(item, sample), self._input.fill(item, sample)
            tokens: list[int] = self._model.tokens(*texts)
            return tokens
        except Ungraded as error:
            return self._without_score(error)
        except DataError as error:
            return self._without_score(Ungraded("other_error", str(error)))
