"""Records that are clean and unlike each other, to plant faults among."""

from __future__ import annotations

import random

_NAMES = [
    "Ada",
    "Ben",
    "Cleo",
    "Dan",
    "Eve",
    "Finn",
    "Gita",
    "Hal",
    "Ines",
    "Jon",
    "Kim",
    "Lou",
    "Mia",
    "Ned",
    "Ola",
    "Pam",
    "Quin",
    "Rob",
    "Sue",
    "Tom",
]
_THINGS = [
    "apples",
    "books",
    "coins",
    "drums",
    "eggs",
    "forks",
    "gates",
    "hats",
    "inks",
    "jars",
    "kites",
    "lamps",
    "maps",
    "nuts",
]
_DEEDS = [
    "buys",
    "sells",
    "finds",
    "loses",
    "paints",
    "counts",
    "wraps",
    "carries",
    "hides",
    "lends",
    "mends",
    "ships",
]
_PLACES = [
    "Oslo",
    "Lima",
    "Kyiv",
    "Rome",
    "Cairo",
    "Quito",
    "Delhi",
    "Tunis",
    "Perth",
    "Turin",
    "Basel",
    "Lagos",
]


def sentence(rng: random.Random) -> str:
    """Fifteen words or so."""
    name, other = rng.sample(_NAMES, 2)
    return (
        f"{name} {rng.choice(_DEEDS)} {rng.randrange(2, 999)} {rng.choice(_THINGS)} in "
        f"{rng.choice(_PLACES)} and {other} {rng.choice(_DEEDS)} {rng.randrange(2, 999)} "
        f"{rng.choice(_THINGS)} on the way to {rng.choice(_PLACES)}."
    )


def pairs(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Records with prompt and completion."""
    rng = random.Random(seed)
    return [
        {
            "prompt": f"{sentence(rng)} {sentence(rng)} What is left?",
            "completion": f"{sentence(rng)} So {rng.randrange(10**6)} are left.",
        }
        for _ in range(count)
    ]
