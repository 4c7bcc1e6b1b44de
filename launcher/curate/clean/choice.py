"""Which training records a cleaned copy leaves out, and why."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from launcher.core.errors import ConfigError, did_you_mean
from launcher.curate.records.marks import BITS
from launcher.curate.records.personal import PERSONAL, SECRET
from launcher.curate.rules import judged
from launcher.curate.rules.duplicates import Indices
from launcher.curate.rules.limits import RULES
from launcher.curate.rules.rules import Evidence, Result
from launcher.curate.scan.inputs import TRAIN
from launcher.curate.scan.table import Array

#: What people call rules on the command line.
ALIASES = {
    "duplicates": "exact_duplicates",
    "near": "near_duplicates",
    "leaks": "leakage",
}
#: Rules that name records; the others are about the whole.
DROPS = (
    *("broken", "exact_duplicates", "near_duplicates", "leakage", "conflicts"),
    *("equal_answers", "tied_ratings", "chosen_held_out"),
    *("tiny_answers", "overlong", "left_out", "label_noise", *BITS),
)
REDACTS = (PERSONAL, SECRET)


@dataclass(frozen=True, slots=True)
class Dropped:
    """A record that is left out."""

    file: int
    line: int
    rule: str
    why: str


def rules_named(text: str, known: Sequence[str], option: str) -> list[str]:
    """The rules in `a,b,c`. Raises `ConfigError` for a name that is not known."""
    names = [ALIASES.get(name.strip(), name.strip()) for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            about_all = name in RULES
            raise ConfigError(
                f"{name!r} names no records" if about_all else f"there is no rule {name!r}",
                where=option,
                hint=did_you_mean(name, [*known, *(a for a, b in ALIASES.items() if b in known)]),
            )
    return list(dict.fromkeys(names))


def drop(
    evidence: Evidence, results: dict[str, Result], rules: Sequence[str]
) -> dict[int, Dropped]:
    """Row -> why it is dropped, by the first of the rules that drops it; those on copies come last.

    Of copies the first that no other rule drops is kept. Of conflicting answers the one that most
    records give is kept; if none has the majority, none is.
    """
    chosen: dict[int, Dropped] = {}

    def note(rule: str, rows: Iterable[tuple[int, str]]) -> None:
        for row, why in rows:
            file, line = (int(evidence.scan.train[name][row]) for name in ("file", "line"))
            chosen.setdefault(row, Dropped(file, line, rule, why))

    for rule in rules:
        if rule not in _COPIES:
            note(rule, _conflicts(evidence) if rule == "conflicts" else results[rule].rows)
    for rule, (clusters, why) in _COPIES.items():
        if rule in rules:
            note(rule, _copies(evidence, clusters(evidence), why, chosen))
    return chosen


def broken(evidence: Evidence) -> list[Dropped]:
    """Training records that cannot be used, those of the held-out side included."""
    scan = evidence.scan
    bad = [*scan.train.bad, *scan.held.table.bad]
    return [
        Dropped(entry.file, entry.line, entry.rule, entry.found)
        for entry in bad
        if scan.inputs[entry.file].split == TRAIN
    ]


def _copies(
    evidence: Evidence, clusters: Iterable[Indices], why: str, gone: Collection[int]
) -> list[tuple[int, str]]:
    """All but the first of each cluster, among those that are not gone."""
    scan, rows = evidence.scan, list[tuple[int, str]]()
    for cluster in clusters:
        there = [row for row in cluster.tolist() if row not in gone]
        rows += [(row, f"{why} {scan.where(scan.train, there[0])}") for row in there[1:]]
    return rows


#: Rules on copies, the surer first -> their clusters, and what a copy is to the one that is kept.
_COPIES: dict[str, tuple[Callable[[Evidence], list[Indices]], str]] = {
    "exact_duplicates": (lambda evidence: evidence.exact, "the same as"),
    "near_duplicates": (lambda evidence: evidence.near, "nearly the same as"),
}


def _conflicts(evidence: Evidence) -> list[tuple[int, str]]:
    scan = evidence.scan
    rows = []
    for group in evidence.conflicts:
        answers = Counter(scan.train.reply[group].tolist())
        answer, count = answers.most_common(1)[0]
        wins = 2 * count > len(group)
        for i in group:
            if not (wins and scan.train.reply[i] == answer):
                other = next(j for j in group if scan.train.reply[j] != scan.train.reply[i])
                where = scan.where(scan.train, other)
                rows.append((int(i), judged.contradiction(scan.train, int(i), where)))
    return sorted(rows)


def left(evidence: Evidence, gone: Collection[int]) -> list[int]:
    """The training rows that are not gone."""
    return [row for row in range(len(evidence.scan.train)) if row not in gone]


def cap(evidence: Evidence, told: dict[int, str], most: int) -> dict[int, Dropped]:
    """Of the rows told with their value those beyond `most` of each; which of them stay is drawn by
    their content."""
    return _thin(evidence, told, lambda _size: most, f"no more than {most:,}")


def even_out(evidence: Evidence, told: dict[int, str], temperature: float) -> dict[int, Dropped]:
    """Of the rows told with their group those too many for shares of n^(1/temperature); the group
    that would have to grow most stays whole."""
    sizes = list(Counter(told.values()).values())
    return _thin(
        evidence,
        told,
        lambda size: evened(size, sizes, temperature),
        f"temperature {temperature:g}",
    )


def evened(size: int, sizes: Sequence[int], temperature: float) -> int:
    """How many records stay of a group among groups of `sizes`."""
    # In logarithms: a temperature near 0 has powers beyond all numbers.
    scale = min((1 - 1 / temperature) * math.log(n) for n in sizes)
    kept = scale + math.log(size) / temperature
    return max(1, min(size, round(math.exp(min(kept, math.log(size))))))


def groups(evidence: Evidence, rows: list[int], field: str) -> dict[int, str]:
    """The label or the source of each row that has one."""
    scan, train = evidence.scan, evidence.scan.train
    if field == "source":
        return {row: scan.inputs[train["file"][row]].group for row in rows}
    return {row: train.label_names[train.labels[row]] for row in rows if train.labels[row] >= 0}


def _thin(
    evidence: Evidence, told: dict[int, str], kept: Callable[[int], int], why: str
) -> dict[int, Dropped]:
    train = evidence.scan.train
    seed = np.uint64(
        (0x9E3779B97F4A7C15 * (2 * evidence.scan.config.seed + 1)) & 0xFFFFFFFFFFFFFFFF
    )
    lots: Array = train.whole[:, 0] * seed
    members: dict[str, list[int]] = {}
    for row, value in told.items():
        members.setdefault(value, []).append(row)
    chosen = {}
    for value, rows in members.items():
        rows.sort(key=lambda row: (int(lots[row]), row))
        for row in rows[kept(len(rows)) :]:
            file, line = int(train["file"][row]), int(train["line"][row])
            chosen[row] = Dropped(file, line, "balance", f"{why}: {value} has {len(rows):,}")
    return chosen
