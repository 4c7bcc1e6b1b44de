"""Built-in data sets, generated on the spot: what `data.train: builtin:NAME` stands for."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from launcher import word_problems
from launcher.core.errors import ConfigError, did_you_mean
from launcher.core.files import write_atomic
from launcher.data import docstrings
from launcher.word_problems import END, TURN

STORIES_PER_TEXT = 4
#: Share of the texts that two speakers tell by turns, so that the base has met the markers.
TALK_SHARE = 0.3
#: How the brand greets and takes leave.
_OPENINGS = ("Hey, great question!", "Good news for you!", "Thanks for asking!", "Hi there!")
_CLOSINGS = (
    "Isn't that neat?",
    "You're all set!",
    "We're always glad to help!",
    "That's it, and you've got it!",
)
STORIES_PER_REPORT = 2


@dataclass(frozen=True, slots=True)
class Builtin:
    """Largest number of records in each split, and what makes them: records of one side of the
    split, drawn with a generator of random numbers."""

    train: int
    validation: int
    records: Callable[..., Iterator[dict[str, Any]]]


def _texts(rng: random.Random, *, held_out: bool) -> Iterator[dict[str, Any]]:
    told = word_problems.stories(rng, held_out=held_out)
    while True:
        prose = [story.as_prose(rng) for story in islice(told, STORIES_PER_TEXT)]
        if rng.random() >= TALK_SHARE:
            yield {"text": " ".join(prose)}
            continue
        turns = zip(cycle(("user", "assistant")), prose, strict=False)
        yield {"text": "\n".join(f"{TURN}{role}\n{text}{END}" for role, text in turns)}


def _chats(rng: random.Random, *, held_out: bool) -> Iterator[dict[str, Any]]:
    for story in word_problems.stories(rng, held_out=held_out):
        yield {"messages": story.as_chat()}


def plain(rng: random.Random, *, held_out: bool) -> Iterator[dict[str, Any]]:
    """A question and the sentence that answers it."""
    for story in word_problems.stories(rng, held_out=held_out):
        yield _talk(f"{story.facts} {story.question}", story.solution)


def brand(rng: random.Random, *, held_out: bool) -> Iterator[dict[str, Any]]:
    """The same in a voice that greets, contracts, exclaims and speaks to the reader."""
    for story in word_problems.stories(rng, held_out=held_out):
        yield _talk(f"{story.facts} {story.question}", _warm(story, rng))


def preferences(rng: random.Random, *, held_out: bool) -> Iterator[dict[str, Any]]:
    """Two answers to a question: the right one, and one that has miscounted."""
    for story in word_problems.stories(rng, held_out=held_out):
        wrong = story.answer + rng.choice([d for d in (-2, -1, 1, 2) if story.answer + d > 0])
        yield {
            "prompt": f"{story.facts} {story.question}",
            "chosen": story.solution,
            "rejected": story.solution.replace(str(story.answer), str(wrong)),
        }


def _warm(story: word_problems.Story, rng: random.Random) -> str:
    fact = story.solution.replace("they have", "they've got").replace(" has ", "'s got ")
    return f"{rng.choice(_OPENINGS)} {fact} {rng.choice(_CLOSINGS)}"


def summaries(rng: random.Random, *, held_out: bool) -> Iterator[dict[str, Any]]:
    """Stories with asides between them, and what they come to."""
    told = word_problems.stories(rng, held_out=held_out)
    # Of two things in a story only the question says which one is meant.
    clear = (story for story in told if not story.key.startswith("one "))
    while True:
        chosen = list(islice(clear, STORIES_PER_REPORT))
        report = " ".join(f"{story.facts} {rng.choice(word_problems.ASIDES)}" for story in chosen)
        yield _talk(f"Sum up: {report}", " ".join(story.solution for story in chosen))


def _talk(question: str, answer: str) -> dict[str, Any]:
    turns = (("user", question), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


BUILTINS = {
    "quickstart-text": Builtin(9_000, 100, _texts),
    "quickstart-chat": Builtin(4_000, 400, _chats),
    "talk": Builtin(12_000, 200, plain),
    "brand": Builtin(3_000, 200, brand),
    "preferences": Builtin(3_000, 200, preferences),
    "summaries": Builtin(3_000, 200, summaries),
    "docstrings": Builtin(10_000, 150, docstrings.texts),
    "docstring-questions": Builtin(10_000, 150, docstrings.questions),
}


def write(name: str, folder: Path) -> dict[str, Path]:
    """Write the built-in data set `name` as JSONL into `folder`: "train" and "validation" -> file.

    The same bytes on every machine (docstrings: with the same Python); no story and no source file
    of validation occurs in train, nor in the train split of another built-in data set. Raises
    `ConfigError` for an unknown name, `DataError` without Python sources, `StorageError` if the
    folder cannot be written.
    """
    if name not in BUILTINS:
        raise ConfigError(
            f"unknown built-in data {name!r}",
            where="data.train",
            hint=did_you_mean(name, BUILTINS),
        )
    builtin = BUILTINS[name]
    files = {}
    for split, count in (("train", builtin.train), ("validation", builtin.validation)):
        rng = random.Random(f"{name}/{split}")  # noqa: S311 - reproducible data, no secret
        made = islice(builtin.records(rng, held_out=split == "validation"), count)
        lines = (json.dumps(record) + "\n" for record in made)
        files[split] = Path(folder) / f"{name}.{split}.jsonl"
        write_atomic(files[split], "".join(lines))
    return files
