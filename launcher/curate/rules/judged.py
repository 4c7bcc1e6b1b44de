"""What pairs of answers, and answers that are good or bad, show only as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from launcher.curate.rules.duplicates import Indices
from launcher.curate.scan.table import RecordTable

#: Quantile of the normal distribution for intervals of 95 %.
_Z = 1.959964


@dataclass(frozen=True, slots=True)
class LengthBias:
    """How far the length of answers, in characters, tells which is chosen."""

    pairs: int
    longer: float
    """Share of the pairs of which the longer answer is chosen."""
    shorter: float

    @property
    def score(self) -> float:
        """Share of the pairs that a judge of length alone gets right, who prefers what is chosen
        more often; of answers of one length half."""
        return max(self.longer, self.shorter) + (1 - self.longer - self.shorter) / 2

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the score, 95 %."""
        return wilson(self.score, self.pairs)


def wilson(share: float, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share of `count` draws."""
    square = _Z * _Z / count
    middle = (share + square / 2) / (1 + square)
    half = _Z / (1 + square) * math.sqrt(share * (1 - share) / count + square / (4 * count))
    return middle - half, middle + half


def num_pairs(table: RecordTable) -> int:
    """Records with a better and a worse answer."""
    return int((table["rejected"] >= 0).sum())


def are_judged(table: RecordTable) -> bool:
    """Whether the records have answers that are judged, those that are refused included."""
    has_verdicts = bool((table["verdict"] >= 0).any())
    return bool(num_pairs(table)) or has_verdicts or any(e.rule != "broken" for e in table.bad)


def length_bias(table: RecordTable) -> LengthBias | None:
    """Of the pairs; None without any."""
    rows = table["rejected"] >= 0
    chosen, rejected = table["answer"][rows], table["rejected"][rows]
    if not len(chosen):
        return None
    longer, shorter = float((chosen > rejected).mean()), float((chosen < rejected).mean())
    return LengthBias(len(chosen), longer, shorter)


def prompts(table: RecordTable) -> tuple[int, int, int] | None:
    """Prompts of answers that are good or bad: all, those with good answers alone, those with bad
    ones alone. None without any."""
    rows = table["verdict"] >= 0
    if not rows.any():
        return None
    _, of = np.unique(table.sides[rows, 0], return_inverse=True)
    count = int(of.max()) + 1
    good = np.bincount(of, table["verdict"][rows] == 1, minlength=count) > 0
    bad = np.bincount(of, table["verdict"][rows] == 0, minlength=count) > 0
    return count, int((good & ~bad).sum()), int((bad & ~good).sum())


def chosen(table: RecordTable) -> Indices:
    """Training records that are not held out and have a better answer, or a good one."""
    has_better = (table["rejected"] >= 0) | (table["verdict"] == 1)
    return np.flatnonzero(has_better & (table["aside"] == 0))


def held_out(train: RecordTable, held: RecordTable) -> list[tuple[int, int]]:
    """(training record, evaluation record) of the better answers in training that are an answer to
    the same prompt in the evaluation data, be it the worse one there."""
    answers = held.sides[:, 1:].ravel()
    owners = np.repeat(np.arange(len(held)), 2)[answers != 0]
    answers = answers[answers != 0]
    order = np.argsort(answers, kind="stable")
    answers, owners = answers[order], owners[order]
    rows = chosen(train)
    wanted = train.sides[rows, 1]
    places = np.minimum(np.searchsorted(answers, wanted), len(answers) - 1)
    met = answers[places] == wanted
    return list(zip(rows[met].tolist(), owners[places[met]].tolist(), strict=True))


def contradiction(table: RecordTable, row: int, where: str) -> str:
    """What a record says against the one at `where`."""
    if table["verdict"][row] >= 0:
        return f"the same answer as {where}, judged otherwise"
    if table["rejected"][row] >= 0:
        return f"the same pair as {where}, the other way round"
    return f"the same question as {where}, another answer"
