"""How sure a preference is, however often one looks. Standard library only.

Every count here is of wins against losses: prompts, pairs of users, sides of the page. Under a true
rate r of wins the likelihood ratio of a mixture over Beta(PRIOR, PRIOR) against r is a martingale
that starts at 1, so the chance that it ever reaches 1/0.05 is at most 5 % (Ville 1939): the mixture
sequential probability ratio test (Robbins 1970; Johari, Pekelis and Walsh 2015, "Always Valid
Inference", Operations Research 2022), here for Bernoulli outcomes, where it is exact at any count.
It holds for a fraction of a win too: by convexity, one with mean r raises the ratio by less.

One thing is outside of that: a prompt that waits for further judges counts with the votes it has,
and these may yet change its part. tests/bench/ab.py simulates it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

CONFIDENCE = 0.95
#: Rates of 30 to 70 % are what the test looks for first; any other is found too, a little later.
PRIOR = 10.0


def evidence(wins: float, losses: float, rate: float = 0.5) -> float:
    """Logarithm of the mixture likelihood ratio against a true rate of wins in (0, 1)."""

    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    mixed = log_beta(PRIOR + wins, PRIOR + losses) - log_beta(PRIOR, PRIOR)
    return mixed - wins * math.log(rate) - losses * math.log1p(-rate)


def p_value(wins: float, losses: float, rate: float = 0.5) -> float:
    """Always-valid p-value: under `rate` the chance that it is ever below p is at most p."""
    return math.exp(min(0.0, -evidence(wins, losses, rate)))


def confidence_sequence(wins: float, losses: float) -> tuple[float, float]:
    """The rates that are not rejected: with 95 % chance the true one is in it at every look."""
    bar = -math.log(1 - CONFIDENCE)
    total = wins + losses
    best = wins / total if total else 0.5

    def end(outside: float) -> float:
        inside = best
        for _ in range(60):
            middle = (inside + outside) / 2
            if evidence(wins, losses, middle) < bar:
                inside = middle
            else:
                outside = middle
        return inside

    # One unanimous side: no rate up to the very end of it can be rejected.
    low = end(1e-12) if wins else 0.0
    high = end(1 - 1e-12) if losses else 1.0
    return low, high


def needed(wins: float, losses: float, limit: int = 1_000_000) -> int | None:
    """Wins and losses together that would decide at this rate; None beyond `limit`."""
    total = wins + losses
    if not total or wins == losses:
        return None
    bar, low, high = -math.log(1 - CONFIDENCE), 1, limit

    def decides(count: int) -> bool:
        return evidence(count * wins / total, count * losses / total) >= bar

    if not decides(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if decides(middle) else (middle + 1, high)
    return low


def krippendorff_alpha(units: Iterable[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for nominal values (2011): 1 is full agreement, 0 that of chance.

    A unit is what several judges said of one thing; those with a single value do not count. None if
    there are none, or all values are one and the same, so that chance would agree too.
    """
    observed = expected = 0.0
    totals: Counter[str] = Counter()
    for unit in units:
        if len(unit) < 2:
            continue
        counts = Counter(unit)
        totals.update(counts)
        same = sum(count * (count - 1) for count in counts.values())
        observed += (len(unit) * (len(unit) - 1) - same) / (len(unit) - 1)
    count = totals.total()
    if count:
        same = sum(each * (each - 1) for each in totals.values())
        expected = (count * (count - 1) - same) / (count - 1)
    return 1 - observed / expected if expected else None
