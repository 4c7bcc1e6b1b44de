"""How often an A/B test says that there is a difference, looked at after every batch or vote.

    python tests/bench/ab.py [--repetitions 2000]

Prints the tables of docs/ab-test.md.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from math import sqrt
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[depth]) for depth in (1, 2)]

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
    for *rates, split in (
        *((0.6, 0.6, 0.5), (0.6, 0.6, 0.1), (0.05, 0.05, 0.5)),
        *((0.6, 0.62, 0.5), (0.6, 0.63, 0.5), (0.6, 0.64, 0.5), (0.6, 0.65, 0.5)),
    ):

        def one(seed: int, rates=tuple(rates), split=split) -> Iterator[ab.Counts]:
            router = Traffic(Path("no.db"), str(seed), split)
            return ab.traffic(router, rates, random.Random(seed), USERS, BATCH)

        made_of = (f"{rates[0]:.0%}", f"{rates[1]:.0%}", f"{split:.0%}")
        yield (*made_of, *shares(one, repetitions))


def study_rows(repetitions: int) -> Iterator[tuple[str, ...]]:
    """Studies of 200 prompts, for several numbers of judges and rates of preference."""
    for mean, spread, judges in (
        *((0.5, 0.0, 1), (0.5, 0.4, 1), (0.5, 0.4, 3), (0.5, 0.4, 5)),
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
    parser.add_argument("--repetitions", type=int, default=2000)
    repetitions = parser.parse_args().repetitions
    for names, rows in (
        (("A liked by", "B liked by", "users of B"), traffic_rows(repetitions)),
        (("prefer B", "over prompts", "judges"), study_rows(repetitions)),
    ):
        titles = (*names, "always-valid", "sign test made for one look")
        print("|", " | ".join(titles), "|\n|" + "---|" * len(titles))
        for row in rows:
            print("|", " | ".join(row), "|", flush=True)
        print()


if __name__ == "__main__":
    main()
