"""How often an A/B test says that there is a difference, looked at after every batch or vote.

    python tests/bench/ab.py [--routers 2000] [--studies 400]

Prints the tables of docs/ab-test.md.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from math import sqrt
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parents[depth]) for depth in (1, 2)]

from launcher.ab import result  # noqa: E402
from launcher.ab.traffic import Traffic  # noqa: E402
from support import ab  # noqa: E402

USERS, BATCH = 10_000, 100


def shares(made: Callable[[int], Iterator[ab.Counts]], repetitions: int) -> list[str]:
    """For each test the share of repetitions with a significant look, with its standard error."""
    found = [0, 0]
    for seed in range(repetitions):
        looks = list(made(seed))
        for index, test in enumerate((ab.always_valid, ab.fixed_size)):
            found[index] += ab.detects(looks, test)
    rates = [count / repetitions for count in found]
    return [f"{rate:.1%} ± {sqrt(rate * (1 - rate) / repetitions):.1%}" for rate in rates]


def traffic_rows(repetitions: int) -> Iterator[tuple[str, ...]]:
    """Users of a router, for several rates of likes."""
    for *rates, split, drift in (
        *((0.6, 0.6, 0.5, 0), (0.6, 0.6, 0.1, 0), (0.05, 0.05, 0.5, 0)),
        *((0.8, 0.8, 0.5, -0.4), (0.8, 0.8, 0.1, -0.4)),
        *((0.6, 0.62, 0.5, 0), (0.6, 0.63, 0.5, 0), (0.6, 0.64, 0.5, 0), (0.6, 0.65, 0.5, 0)),
    ):
        router = Traffic(Path("no.db"), "bench", split)
        is_b = np.array([router.assign(f"user {n}").side == "b" for n in range(USERS)])
        chance = np.where(is_b, rates[1], rates[0]) + drift * np.arange(USERS) / USERS
        paired = partners(is_b)

        def one(seed: int, case=(is_b, paired, chance)) -> Iterator[ab.Counts]:
            is_b, paired, chance = case
            liked = np.random.default_rng(seed).random(USERS) < chance
            return looks(is_b, paired, liked.astype(float))

        check(is_b, one(0), np.random.default_rng(0).random(USERS) < chance)
        moves = [f" to {rate + drift:.0%}" if drift else "" for rate in rates]
        liked_by = [f"{rate:.0%}{move}" for rate, move in zip(rates, moves, strict=True)]
        yield (*liked_by, f"{split:.0%}", *shares(one, repetitions))


def partners(is_b: np.ndarray) -> np.ndarray:
    """Users of A and of B who are paired, shape (2, pairs), as `launcher.ab.result.pairs` does."""
    waiting: list[int] = []
    paired = []
    for user, b in enumerate(is_b):
        if waiting and is_b[waiting[-1]] != b:
            paired.append((waiting.pop(), user) if b else (user, waiting.pop()))
        else:
            waiting.append(user)
    return np.array(paired).T


def looks(is_b: np.ndarray, paired: np.ndarray, liked: np.ndarray) -> Iterator[ab.Counts]:
    """Wins and losses of paired users after each batch."""
    b_so_far = np.cumsum(is_b)[BATCH - 1 :: BATCH]
    num_pairs = np.minimum(b_so_far, np.arange(BATCH, USERS + 1, BATCH) - b_so_far)
    differences = liked[paired[1]] - liked[paired[0]]
    wins, losses = (
        np.concatenate([[0], np.cumsum(side)])[num_pairs].tolist()
        for side in (differences > 0, differences < 0)
    )
    return zip(wins, losses, strict=True)


def check(is_b: np.ndarray, made: Iterator[ab.Counts], liked: np.ndarray) -> None:
    """Hold the last look against what the launcher makes of the same feedback."""
    said = [
        (str(user), "b" if b else "a", float(likes))
        for user, (b, likes) in enumerate(zip(is_b, liked, strict=True))
    ]
    wins, losses, _ = result.preferences([each] for each in result.pairs(said))
    assert list(made)[-1] == (wins, losses)


def study_rows(repetitions: int) -> Iterator[tuple[str, ...]]:
    """Studies of 200 prompts, for several numbers of judges and rates of preference."""
    for mean, spread, judges in (
        *((0.5, 0.0, 1), (0.5, 0.4, 1), (0.5, 0.4, 3)),
        *((0.6, 0.3, 1), (0.6, 0.3, 3), (0.65, 0.3, 3), (0.7, 0.3, 3)),
    ):

        def one(seed: int, case=(mean, spread, judges)) -> Iterator[ab.Counts]:
            mean, spread, judges = case
            return ab.study(mean, spread, random.Random(seed), prompts=200, judges=judges)

        made_of = (f"{mean:.0%}", f"± {100 * spread:.0f} pts", str(judges))
        yield (*made_of, *shares(one, repetitions))


def main() -> None:
    """Print both tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--routers", type=int, default=2000, help="of 10,000 users, a row")
    parser.add_argument("--studies", type=int, default=400, help="of 200 prompts, a row")
    options = parser.parse_args()
    for names, rows in (
        (("A liked by", "B liked by", "users of B"), traffic_rows(options.routers)),
        (("prefer B", "over prompts", "judges"), study_rows(options.studies)),
    ):
        titles = (*names, "always-valid", "sign test made for one look")
        print("|", " | ".join(titles), "|\n|" + "---|" * len(titles))
        for row in rows:
            print("|", " | ".join(row), "|", flush=True)
        print()


if __name__ == "__main__":
    main()
