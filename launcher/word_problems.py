"""Small word problems: the built-in data and the tiny tokenizer's text. Standard library only.

The facts of a story (people, things, numbers) decide by hash on which side of the split it stands,
in every form in which it is told, so a held-out problem was never met as a text either.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass

#: Markers of a chat turn.
TURN, END = "<|turn|>", "<|end|>"

HELD_OUT_PERCENT = 10
_PEOPLE = "Ada Ben Cleo Dan Eva Finn Gus Hana Ivan Joy Kim Leo Mia Nils Olga Pia Ravi Sam Tina Zoe"
_THINGS = "apples books cards coins cups eggs hats keys nuts pears pens plums shells stamps toys"
NAMES, THINGS = _PEOPLE.split(), _THINGS.split()
GAINS = ("buys", "finds", "gets", "wins")
LOSSES = ("drops", "loses", "sells", "uses")
ASIDES = ("It is a fine day.", "The sun is out.", "Now it is late.", "Let us count.")
LARGEST = 10


@dataclass(frozen=True, slots=True)
class Story:
    """A word problem: its facts, the question, the sentence that solves it, and the number.

    `key` names its kind and facts.
    """

    facts: str
    question: str
    solution: str
    answer: int
    key: str

    @property
    def held_out(self) -> bool:
        """Whether the story belongs to validation, decided by its key alone."""
        digest = hashlib.blake2b(self.key.encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT

    def as_prose(self, rng: random.Random) -> str:
        """Facts and solution, told in one of several ways."""
        between = rng.choice(
            ("", f" {rng.choice(ASIDES)}", f" {self.question}", f" {self.question}")
        )
        end = rng.choice(("", f" That makes {self.answer}."))
        return f"{self.facts}{between} {self.solution}{end}"

    def as_chat(self) -> list[dict[str, str]]:
        """The question and its answer, which ends in a line such as `#### 12`."""
        return [
            {"role": "user", "content": f"{self.facts} {self.question}"},
            {"role": "assistant", "content": f"{self.solution}\n#### {self.answer}"},
        ]


def stories(rng: random.Random, *, held_out: bool) -> Iterator[Story]:
    """Stories of one side of the split, drawn with `rng`; none comes twice.

    Practically endless for up to 40,000 in train and 4,000 held out; there are not many more.
    """
    tellers = (_one_of_two, _gain, _loss, _together)
    seen: set[str] = set()
    while True:
        story = rng.choice(tellers)(rng)
        if story.held_out == held_out and story.key not in seen:
            seen.add(story.key)
            yield story


def _one_of_two(rng: random.Random) -> Story:
    who = rng.choice(NAMES)
    things = rng.sample(THINGS, 2)
    counts = [rng.randint(1, LARGEST) for _ in things]
    asked = rng.randrange(2)
    return Story(
        facts=f"{who} has {counts[0]} {things[0]} and {counts[1]} {things[1]}.",
        question=f"How many {things[asked]} does {who} have?",
        solution=f"{who} has {counts[asked]} {things[asked]}.",
        answer=counts[asked],
        key=f"one {who} {counts} {things} {asked}",
    )


def _gain(rng: random.Random) -> Story:
    who, thing, verb = rng.choice(NAMES), rng.choice(THINGS), rng.choice(GAINS)
    first, more = rng.randint(1, LARGEST), rng.randint(1, LARGEST)
    return Story(
        facts=f"{who} has {first} {thing}. Then {who} {verb} {more} {thing}.",
        question=f"How many {thing} does {who} have now?",
        solution=f"{who} has {first} + {more} = {first + more} {thing}.",
        answer=first + more,
        key=f"gain {who} {thing} {first} {more}",
    )


def _loss(rng: random.Random) -> Story:
    who, thing, verb = rng.choice(NAMES), rng.choice(THINGS), rng.choice(LOSSES)
    less = rng.randint(1, LARGEST - 1)
    first = rng.randint(less + 1, LARGEST)
    return Story(
        facts=f"{who} has {first} {thing}. Then {who} {verb} {less} {thing}.",
        question=f"How many {thing} does {who} have now?",
        solution=f"{who} has {first} - {less} = {first - less} {thing}.",
        answer=first - less,
        key=f"loss {who} {thing} {first} {less}",
    )


def _together(rng: random.Random) -> Story:
    people, thing = rng.sample(NAMES, 2), rng.choice(THINGS)
    first, second = rng.randint(1, LARGEST), rng.randint(1, LARGEST)
    return Story(
        facts=f"{people[0]} has {first} {thing}. {people[1]} has {second} {thing}.",
        question=f"How many {thing} do they have together?",
        solution=f"Together they have {first} + {second} = {first + second} {thing}.",
        answer=first + second,
        key=f"together {people} {thing} {first} {second}",
    )
