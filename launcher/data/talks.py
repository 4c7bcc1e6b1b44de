"""Made conversations about stories: plain answers, the same in a brand's voice, and summaries."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

from launcher import stories

_OPENINGS = ("Hey, great question!", "Good news for you!", "Thanks for asking!", "Hi there!")
_CLOSINGS = (
    "Isn't that neat?",
    "You're all set!",
    "We're always glad to help!",
    "That's it, and you've got it!",
)
STORIES_PER_REPORT = 2


def plain(rng: random.Random, *, held_out: bool) -> Iterator[dict[str, Any]]:
    """A question and the sentence that answers it."""
    for story in stories.stories(rng, held_out=held_out):
        yield _talk(f"{story.facts} {story.question}", story.solution)


def brand(rng: random.Random, *, held_out: bool) -> Iterator[dict[str, Any]]:
    """The same in a voice that greets, contracts, exclaims and speaks to the reader."""
    for story in stories.stories(rng, held_out=held_out):
        fact = story.solution.replace("they have", "they've got").replace(" has ", "'s got ")
        answer = f"{rng.choice(_OPENINGS)} {fact} {rng.choice(_CLOSINGS)}"
        yield _talk(f"{story.facts} {story.question}", answer)


def summaries(rng: random.Random, *, held_out: bool) -> Iterator[dict[str, Any]]:
    """Stories with asides between them, and what they come to."""
    told = stories.stories(rng, held_out=held_out)
    # Of two things in a story only the question says which one is meant.
    clear = (story for story in told if not story.key.startswith("one "))
    while True:
        chosen = list(islice(clear, STORIES_PER_REPORT))
        report = " ".join(f"{story.facts} {rng.choice(stories.ASIDES)}" for story in chosen)
        yield _talk(f"Sum up: {report}", " ".join(story.solution for story in chosen))


def _talk(question: str, answer: str) -> dict[str, Any]:
    turns = (("user", question), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}
