"""Simulated A/B tests: people who vote and users who like, looked at again and again."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator

from launcher.ab import result, statistics
from launcher.ab.traffic import Traffic

Counts = tuple[float, float]
Test = Callable[[float, float], float]


def always_valid(wins: float, losses: float) -> float:
    """The p-value that `launcher ab result` prints."""
    return statistics.p_value(wins, losses)


def fixed_size(wins: float, losses: float) -> float:
    """What a sign test says that was made for a single look at the end (normal approximation)."""
    from math import erfc, sqrt

    total = wins + losses
    return erfc(abs(wins - losses) / sqrt(2 * total)) if total else 1.0


def detects(looks: Iterable[Counts], test: Test = always_valid) -> bool:
    """Whether any look is significant at 5 %."""
    return any(test(*counts) < 0.05 for counts in looks)


def traffic(
    router: Traffic, rates: tuple[float, float], rng: random.Random, users: int, batch: int
) -> Iterator[Counts]:
    """Wins and losses after each batch of users, who like what they get at their side's rate.

    Users are assigned as the router assigns them, and all of them say what they think.
    """
    said = []
    sizes = {"a": 0, "b": 0}
    pairs_at = []
    for number in range(users):
        assigned = router.assign(f"user {number}")
        liked = rng.random() < rates[assigned.side == "b"]
        said.append((assigned.user, assigned.side, float(liked)))
        sizes[assigned.side] += 1
        if (number + 1) % batch == 0:
            pairs_at.append(min(sizes.values()))
    differences = result.pairs(said)
    wins = losses = 0
    for start, end in zip([0, *pairs_at], pairs_at, strict=False):
        wins += sum(difference > 0 for difference in differences[start:end])
        losses += sum(difference < 0 for difference in differences[start:end])
        yield wins, losses


def study(
    mean: float, spread: float, rng: random.Random, *, prompts: int, judges: int
) -> Iterator[Counts]:
    """Wins and losses after each vote of several judges, each in an order of their own.

    On a prompt, B is preferred with a chance of its own, mean +- spread, which all judges share: so
    their votes on it are alike. Of all votes a fifth are ties.
    """
    chances = [mean + spread * rng.choice((-1, 1)) for _ in range(prompts)]
    orders = [rng.sample(range(prompts), prompts) for _ in range(judges)]
    votes: list[list[float]] = [[] for _ in range(prompts)]
    counted: list[Counts] = [(0.0, 0.0)] * prompts
    while any(orders):
        order = rng.choice([order for order in orders if order])
        item = order.pop()
        tie = rng.random() < 0.2
        votes[item].append(0.0 if tie else 1.0 if rng.random() < chances[item] else -1.0)
        counted[item] = result.preferences([votes[item]])[:2]
        yield sum(won for won, _ in counted), sum(lost for _, lost in counted)
