"""What a run has measured: its metrics.jsonl, read as it grows."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from launcher.serve.jobs.methods import Names, TrainingMethod

#: Steps whose mean time is the pace.
_RECENT = 20
#: How the mean scores of the graders within another one are called.
_PART = "score/"
#: Bytes before a place by which it is known again: more than the times of any line.
_MARKED = 1024


@dataclass(slots=True)
class Measured:
    """Numbers of one step; None for what was not measured, or is no finite number."""

    step: int
    time: float
    train_loss: float | None
    tokens: int
    """Tokens trained on since the run began."""
    valid_loss: float | None = None
    beside: dict[str, float | None] = field(default_factory=dict)
    """What was measured beside both losses, by the names that clients know."""
    parts: dict[str, float] = field(default_factory=dict)
    """Mean score of each grader within the one that rewards, by its name."""
    is_validated: bool = False
    """Whether a validation of this step was read."""
    seconds: float | None = None
    """What it took."""

    def metrics(self) -> dict[str, Any]:
        """The numbers that there are, by the names that clients know.

        A validation goes over the whole file each time, so its full numbers are the same ones.
        """
        named = {
            "step": self.step,
            "train_loss": self.train_loss,
            "valid_loss": self.valid_loss,
            **self.beside,
        }
        full = {f"full_{n}": value for n, value in named.items() if n.startswith("valid_")}
        return {name: value for name, value in (named | full).items() if value is not None}

    def message(self, total: int) -> str:
        """A line for people."""
        if "train_reward_mean" in self.beside:
            return self._of_rewards(total)
        loss = "n/a" if self.train_loss is None else f"{self.train_loss:.2f}"
        text = f"Step {self.step}/{total}: training loss={loss}"
        if self.valid_loss is None:
            return text
        found = f"{self.valid_loss:.2f}"
        return f"{text}, validation loss={found}, full validation loss={found}"

    def _of_rewards(self, total: int) -> str:
        told = (
            ("train mean reward", "train_reward_mean"),
            ("full validation mean reward", "valid_reward_mean"),
        )
        found = [(name, self.beside.get(key)) for name, key in told]
        said = [f"{name}={value:.2f}" for name, value in found if value is not None]
        return f"Step {self.step}/{total}: {', '.join(said) or 'no answer has a reward'}"


@dataclass(frozen=True, slots=True)
class Place:
    """How far a file has been read: to a byte, and a digest of what stands before it.

    A run that goes on from a checkpoint writes its metrics anew: the byte alone would then be a
    place in the midst of lines that nobody has read.
    """

    position: int = 0
    mark: str = ""

    @classmethod
    def at(cls, file: IO[bytes], position: int) -> Place:
        """The place at a byte of the file as it is now."""
        first = max(0, position - _MARKED)
        file.seek(first)
        before = file.read(position - first)
        return cls(position, hashlib.sha256(before).hexdigest()[:16] if position else "")


BEGIN = Place()


def read(
    path: Path,
    place: Place,
    method: TrainingMethod,
    *,
    evaluates: Callable[[int], bool],
    ended: bool,
) -> tuple[list[Measured], Place]:
    """Steps in the file from `place` on, and where to read on from.

    Beside the losses they have the numbers of the job's method. All of the file is read if it is
    another one than `place` was taken from. A step that `evaluates` is told only with its
    validation, unless nothing follows it any more: the next step has been made, or the run has
    `ended`.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below
    except FileNotFoundError:
        return [], BEGIN
    with file:
        if Place.at(file, place.position) != place:
            place = BEGIN
        found, end = _read(file, place.position, method, evaluates, ended)
        return found, Place.at(file, end)


def _read(
    file: IO[bytes],
    position: int,
    method: TrainingMethod,
    evaluates: Callable[[int], bool],
    ended: bool,
) -> tuple[list[Measured], int]:
    found: list[Measured] = []
    last: Measured | None = None
    begin = position
    for raw, start, end in _lines(file, position):
        position = end
        if raw.get("kind") == "train":
            found += [last] if last else []
            last, begin = _measured(raw, method.train), start
        elif raw.get("kind") == "eval" and last and raw.get("step") == last.step:
            # A step's validation may come in two records.
            last.is_validated = True
            last.valid_loss = _number(raw.get("eval/loss", last.valid_loss))
            found_here = _named(raw, method.valid, "eval/")
            last.beside |= {name: x for name, x in found_here.items() if x is not None}
    if last is None:
        return found, position
    if ended or last.is_validated or not evaluates(last.step):
        return [*found, last], position
    return found, begin


def expected_end(steps: Sequence[Measured], total: int) -> int | None:
    """Unix seconds at which step `total` is made at the pace of the last of `steps`, if known."""
    paces = [one.seconds for one in steps[-_RECENT:] if one.seconds]
    if not paces:
        return None
    left = max(0, total - steps[-1].step)
    return math.ceil(steps[-1].time + left * sum(paces) / len(paces))


def table(steps: Iterable[Measured], method: TrainingMethod) -> bytes:
    """The result file: a CSV line a step, cells empty where nothing was measured."""
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(("step", *method.columns))
    for one in steps:
        found = one.metrics()
        lines.writerow((one.step, *map(found.get, method.columns.values())))
    return out.getvalue().encode()


def _lines(file: IO[bytes], position: int) -> Iterator[tuple[dict[str, Any], int, int]]:
    """Whole lines: content, first byte, byte behind it. Torn lines of a crash are passed over."""
    file.seek(position)
    for line in file:
        if not line.endswith(b"\n"):
            return
        start, position = position, position + len(line)
        try:
            raw = json.loads(line)
        except ValueError:
            continue
        if isinstance(raw, dict) and isinstance(raw.get("step"), int):
            yield raw, start, position


def _measured(raw: dict[str, Any], names: Names) -> Measured:
    tokens = _number(raw.get("tokens")) or 0
    return Measured(
        raw["step"],
        _number(raw.get("time")) or 0.0,
        _number(raw.get("loss")),
        int(tokens),
        beside=_named(raw, names),
        parts={
            name.removeprefix(_PART): score
            for name, value in raw.items()
            if name.startswith(_PART) and (score := _number(value)) is not None
        },
        seconds=_number(raw.get("step_time_s")),
    )


def _named(raw: dict[str, Any], names: Names, prefix: str = "") -> dict[str, float | None]:
    return {told: _number(_value(raw, f"{prefix}{own}")) for told, own in names.items()}


def _value(raw: dict[str, Any], name: str) -> Any:
    if not name.endswith(":"):
        return raw.get(name)
    return next((value for own, value in raw.items() if own.startswith(name)), None)


def _number(value: Any) -> float | None:
    """A finite number; others are written as text."""
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
