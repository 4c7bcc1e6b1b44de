"""The answers of each rollout, kept before the first update that learns from them.

    rollouts/step-00000012.jsonl    what was drawn before optimizer step 13, a line an answer

A file is there whole or not at all. A run that goes on takes the rollouts that it finds: its
updates are those that it would have made.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from launcher.core.errors import StorageError
from launcher.core.files import write_atomic
from launcher.core.rundir import RunDir
from launcher.rollouts.answer import ScoredAnswer


class RolloutJournal:
    """Reads and writes rollouts of a run; for one rank."""

    def __init__(self, run: RunDir, expected: int | None = None) -> None:
        """`expected`: answers of a rollout, where that is known."""
        self._run, self._expected = run, expected

    def path(self, step: int) -> Path:
        """The file of the rollout that begins before optimizer step `step` (from 0)."""
        return self._run.rollouts / f"step-{step:08d}.jsonl"

    def steps(self) -> list[int]:
        """The steps before which the rollouts began that are kept, ascending."""
        names = (
            path.stem.removeprefix("step-") for path in self._run.rollouts.glob("step-*.jsonl")
        )
        return sorted(int(name) for name in names if name.isdecimal())

    def write(self, step: int, answers: Sequence[ScoredAnswer]) -> None:
        """Keep a rollout; `StorageError` where that fails."""
        lines = (_line({"step": step, **asdict(answer)}) for answer in answers)
        write_atomic(self.path(step), "".join(f"{line}\n" for line in lines))

    def read(self, step: int) -> list[ScoredAnswer] | None:
        """A rollout that is kept; None if there is none. `StorageError` for one that is damaged."""
        path = self.path(step)
        try:
            # Not at each end of a line that Unicode knows: texts have those too.
            lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        except FileNotFoundError:
            return None
        try:
            found = [_answer(line) for line in lines]
        except (ValueError, TypeError, AttributeError) as error:
            raise _damaged(path, str(error)) from error
        if self._expected not in (None, len(found)):
            raise _damaged(path, f"{len(found)} answers, not {self._expected}")
        return found


def _line(values: dict[str, Any]) -> str:
    line = json.dumps(values, ensure_ascii=False)
    try:
        line.encode()
    except UnicodeEncodeError:  # half a character, which no file can hold
        line = json.dumps(values)
    return line


def _answer(line: str) -> ScoredAnswer:
    values = json.loads(line)
    values.pop("step", None)
    return ScoredAnswer(**values)


def _damaged(path: Path, found: str) -> StorageError:
    return StorageError(
        f"no whole rollout: {found}",
        where=str(path),
        hint=f"put it back, or have its answers drawn again: rm {path}",
    )
