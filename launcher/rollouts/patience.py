"""A model that grades and is away for a while: the rollout is graded again before a run fails."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

from launcher.core.errors import LauncherError
from launcher.distributed import collectives
from launcher.evals.runner import poll
from launcher.graders.grader import Grade

#: Seconds until the first further try, and the most between two; each pause is twice the last.
_FIRST_S, _LONGEST_S = 5.0, 60.0
_AWAY = "model_grader_server_error"


class GradingPatience:
    """Has answers graded, and graded again for up to `most_s` seconds while the model that grades
    answers nothing; every rank has it do the same."""

    def __init__(
        self,
        most_s: float,
        *,
        alive: Callable[[], None],
        should_stop: Callable[[], bool],
        say: Callable[[str], None],
    ) -> None:
        self._most_s, self._alive, self._should_stop, self._say = most_s, alive, should_stop, say

    def grades(self, ask: Callable[[], list[Grade]]) -> list[Grade]:
        """What `ask` gives, of which some rank has a score, or an error of another kind.

        Raises `LauncherError` where there is none in time, or the model refuses, and
        `launcher.evals.runner.EvaluationStopped` where the run is to stop.
        """
        began, pause_s = time.monotonic(), _FIRST_S
        while True:
            grades = ask()
            mine = _errors(grades), time.monotonic() - began
            found = collectives.gather_objects(mine)
            errors = [error for own, _ in found for error in own or ()]
            if not errors or any(own is None for own, _ in found):
                return grades
            message = errors[0][0]
            left_s = self._most_s - max(seconds for _, seconds in found)
            if left_s <= 0 or not any(is_passing for _, is_passing in errors):
                raise _gone(message, self._most_s - left_s)
            pause_s = min(pause_s, left_s)
            self._say(f"warning: {message}; the rollout is graded again in {pause_s:.0f} s")
            self._wait(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_S)

    def _wait(self, seconds: float) -> None:
        count = math.ceil(seconds)
        for _ in range(count):
            poll(self._should_stop)
            self._alive()
            time.sleep(seconds / count)


def _errors(grades: Sequence[Grade]) -> list[tuple[str, bool]] | None:
    """The message of each error and whether it may pass, where nothing else than a model that
    grades keeps these answers from a score; else None."""
    errors = [error for grade in grades for error in grade.errors]
    is_known = any(grade.score is not None or not grade.errors for grade in grades)
    if is_known or any(error.kind != _AWAY for error in errors):
        return None
    return [(error.message, error.is_passing) for error in errors]


def _gone(message: str, waited_s: float) -> LauncherError:
    return LauncherError(
        f"no answer of a rollout has a score after {waited_s:.0f} s: {message}",
        where="objective.grader",
        hint="see that the model which grades is up, and what the log says of it, and resume the"
        " run; a larger objective.grader_wait_s waits longer",
    )
