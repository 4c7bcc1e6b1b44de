"""The exception family and the exit codes. Standard library only.

Every error a user can cause says where (config path or file:line), what was found, how to mend it.
`assert` elsewhere marks our own invariants; anything a user can trigger is one of these classes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes; requeueing and CI gates decide by these classes."""

    ok = 0
    internal = 1
    usage = 2
    data = 3
    out_of_memory = 4
    diverged = 5
    hang = 6
    storage = 7
    preempted = 75
    interrupted = 130


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: `where` (config path or file:line), what was found, and the fix."""

    where: str
    found: str
    hint: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.found}" if self.where else self.found
        return f"{text}\n  HINT: {self.hint}" if self.hint else text


class LauncherError(Exception):
    """Base of all errors with a known cause; carries one or more `Problem`s and an exit code."""

    exit_code: ExitCode = ExitCode.internal

    def __init__(self, found: str | Sequence[Problem], *, where: str = "", hint: str = "") -> None:
        if isinstance(found, str):
            found = [Problem(where, found, hint)]
        self.problems: tuple[Problem, ...] = tuple(found)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class ConfigError(LauncherError):
    """Wrong command line, unknown key, wrong type or impossible combination."""

    exit_code = ExitCode.usage


class DataError(LauncherError):
    """Input data that cannot be trained on."""

    exit_code = ExitCode.data


class OutOfMemoryError(LauncherError):
    """The device or the host ran out of memory."""

    exit_code = ExitCode.out_of_memory


class DivergedError(LauncherError):
    """NaN or Inf in the loss or the gradient norm."""

    exit_code = ExitCode.diverged


class HangError(LauncherError):
    """A rank did not join or stopped making progress."""

    exit_code = ExitCode.hang


class StorageError(LauncherError):
    """Disk full, read-only, damaged or locked storage."""

    exit_code = ExitCode.storage


class Preempted(LauncherError):
    """A clean stop after a saved checkpoint; the run can be requeued."""

    exit_code = ExitCode.preempted


#: Nobody means a longer word, and looking for what is near takes time by its length.
_LONGEST = 100


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint naming the closest known words; if none is close, all of them or the nearest ones."""
    known, word = sorted(known), word[:_LONGEST]
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(repr(name) for name in close)}?"
    return f"choose one of: {some_of(known, word)}"


def some_of(known: Sequence[str], word: str, most: int = 8) -> str:
    """The words of `known`; of many, the `most` that are nearest to `word`, and how many more."""
    if len(known) <= most + 2:
        return ", ".join(known)
    near = difflib.get_close_matches(word[:_LONGEST], known, n=most, cutoff=0.0)
    kept = [name for name in known if name in near]
    return f"{', '.join(kept)} and {len(known) - len(kept)} more"
