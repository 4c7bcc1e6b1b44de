"""Signs of life of a run's ranks: what a heartbeat says, when a run hangs, and who holds it up.

Ranks and supervisor judge and settle a run by the same functions. Standard library only.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.core.errors import ExitCode, HangError, StorageError
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir, State

#: Phases of a rank, in no order: a run may evaluate before its first step.
PHASES = ("start", "step", "eval", "save", "export", "end", "done")
DONE = "done"
#: Phases in which every rank gives the same signs of life one by one.
_IN_STEP = ("step", "eval")
#: Longest wait for the ranks to say where they are, once the run hangs, in seconds.
ANSWER_S = 10.0


@dataclass(frozen=True, slots=True)
class Beat:
    """The last sign of life of a rank.

    `time` (Unix seconds) is when the rank last did something new, `limit` the seconds after which
    the lack of it counts as a hang (0: never). `turn` counts the phases so far and `count` the
    signs of life in this one. A rank that finds the run hanging adds `where` its main thread is and
    `waiting`, whether that is a wait for other ranks.
    """

    rank: int
    host: str
    pid: int
    attempt: int
    phase: str
    step: int
    time: float
    limit: float
    space: str = ""
    """Where `pid` is known (`launcher.core.processes.space`)."""
    part: str = ""
    turn: int = 0
    count: int = 0
    answered: bool = False
    where: str = ""
    waiting: bool = False

    def is_overdue(self, now: float) -> bool:
        """Whether the rank has been silent for longer than its phase may take."""
        return self.limit > 0 and now - self.time > self.limit

    def place(self) -> str:
        """Phase, step (as logged: the first is 1) and part in words."""
        text = f"step {self.step + 1}" if self.phase == "step" else self.phase
        return f"{text}, {self.part}" if self.part else text

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class HangCause:
    """Why a run hangs: `odd` are the ranks that hold the others up, none if nothing tells them."""

    odd: tuple[int, ...]
    silent: tuple[int, ...]
    """Ranks that did not even say where they are."""
    reason: str


def from_json(raw: Any) -> Beat | None:
    """A heartbeat as it was written, or None for anything else."""
    try:
        return Beat(**{key: raw[key] for key in Beat.__dataclass_fields__ if key in raw})
    except (TypeError, KeyError):
        return None


def read(run: RunDir, attempt: int) -> dict[int, Beat]:
    """Rank -> last sign of life in this attempt; older attempts' files do not count."""
    beats = {}
    for file in run.heartbeats.glob("rank-*.json"):
        beat = from_json(read_json(file))
        if beat is not None and beat.attempt == attempt:
            beats[beat.rank] = beat
    return dict(sorted(beats.items()))


def is_stalled(beats: Mapping[int, Beat], now: float) -> bool:
    """Whether no rank makes progress.

    Ranks wait for each other, so one that hangs brings all to a stand; while one is within its
    limit (it may be saving), the others may well be waiting for it.
    """
    living = [beat for beat in beats.values() if beat.phase != DONE]
    return bool(living) and all(beat.is_overdue(now) for beat in living)


def judge(
    beats: Mapping[int, Beat], now: float, describe: Callable[[Beat], str] | None = None
) -> HangCause:
    """Name the ranks that hold up a stalled run, and what the others do.

    In this order: those that do not answer, those that have ended, those that are behind, those
    that wait for nobody. `describe` tells what can be seen of a silent rank's process.
    """
    living = [beat for beat in beats.values() if beat.phase != DONE]
    silent = [beat for beat in living if not beat.answered]
    ended = [beat for beat in beats.values() if beat.phase == DONE]
    odd = _first_proper(
        living,
        silent,
        ended,
        _behind(living),
        [beat for beat in living if not beat.waiting],
    )
    if not odd and (len(beats) == 1 or len(silent) == len(living)):
        odd = living
    sentences = [_of_odd(beat, now, describe) for beat in odd[:8]]
    if len(odd) > 8:
        sentences.append(f"so do {len(odd) - 8} more ranks")
    rest = [beat for beat in living if beat not in odd]
    sentences += [f"{_ranks(group)} {text}" for text, group in _grouped(rest).items()]
    if not odd:
        sentences.append("no rank differs from the others: look at the network between the hosts")
    return HangCause(
        odd=tuple(beat.rank for beat in odd),
        silent=tuple(beat.rank for beat in silent),
        reason=f"no rank makes progress: {'; '.join(sentences)}",
    )


def _first_proper(living: list[Beat], *candidates: list[Beat]) -> list[Beat]:
    """The first candidates that are some but not all of the living."""
    return next((c for c in candidates if c and not all(beat in c for beat in living)), [])


def _behind(living: list[Beat]) -> list[Beat]:
    def position(beat: Beat) -> tuple[int, int]:
        return beat.turn, beat.count if beat.phase in _IN_STEP else 0

    first = min(map(position, living), default=(0, 0))
    return [beat for beat in living if position(beat) == first]


def _of_odd(beat: Beat, now: float, describe: Callable[[Beat], str] | None) -> str:
    name = f"rank {beat.rank} on host {beat.host}"
    if beat.phase == DONE:
        return f"{name} has ended"
    text = f"{name} stays in {beat.place()} (last sign of life {now - beat.time:.0f} s ago)"
    if beat.answered:
        return f"{text}, at {beat.where}" if beat.where else text
    seen = describe(beat) if describe else ""
    return f"{text} and does not answer" + (f": {seen}" if seen else "")


def _grouped(beats: Iterable[Beat]) -> dict[str, list[Beat]]:
    groups: dict[str, list[Beat]] = {}
    for beat in beats:
        does = "waits" if beat.waiting else "stays"
        at = f", at {beat.where}" if beat.where else ""
        groups.setdefault(f"{does} in {beat.place()}{at}", []).append(beat)
    return groups


def _ranks(group: list[Beat]) -> str:
    """`rank 1`, or `each of ranks 0-2, 5`."""
    numbers = sorted(beat.rank for beat in group)
    if len(numbers) == 1:
        return f"rank {numbers[0]}"
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return "each of ranks " + ", ".join(f"{a}-{b}" if b > a else f"{a}" for a, b in spans)


def stall_file(run: RunDir, attempt: int) -> Path:
    """Written once an attempt's hang has been judged: the verdict and all heartbeats."""
    return run.attempt(attempt) / "stall.json"


def stacks_file(run: RunDir, attempt: int, rank: int) -> Path:
    """Python stacks of a rank, dumped when the run hangs or on SIGUSR2."""
    return run.attempt(attempt) / f"stacks-rank-{rank}.txt"


def settle(
    run: RunDir,
    attempt: int,
    beats: Mapping[int, Beat],
    describe: Callable[[Beat], str],
) -> str:
    """Judge a stalled run and write what is found; returns the reason.

    A note instead of each silent rank's stacks, then status.json, and stall.json last: the ranks
    wait for it before they end.
    """
    verdict = judge(beats, time.time(), describe)
    for rank in verdict.silent:
        with (
            contextlib.suppress(OSError),
            open(stacks_file(run, attempt, rank), "a", encoding="utf-8") as file,
        ):
            file.write(f"rank {rank} did not answer: {describe(beats[rank])}\n")
    reason = str(
        HangError(
            verdict.reason,
            where=str(run.attempt(attempt)),
            hint="stacks-rank-*.txt there show where each rank is; raise the limit under `watchdog`"
            f" if it is only slow; {run.command('resume', anywhere=True)} goes on from the last"
            " checkpoint",
        )
    )
    ranks = [beat.to_json() for beat in beats.values()]
    with contextlib.suppress(StorageError):  # a rank ends on a full disk too
        run.set_status(State.failed, reason=reason, exit_code=int(ExitCode.hang))
        write_json(stall_file(run, attempt), {"reason": reason, "ranks": ranks})
    return reason
