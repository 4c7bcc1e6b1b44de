"""Built-in data sets, generated on the spot: what `data.train: builtin:NAME` stands for."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from launcher import stories
from launcher.errors import ConfigError, did_you_mean
from launcher.rundir import write_atomic
from launcher.stories import END, TURN

STORIES_PER_TEXT = 4
#: Share of the texts that two speakers tell by turns, so that the base has met the markers.
TALK_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class Builtin:
    """Number of records in each split, and how the next record is made from stories."""

    train: int
    validation: int
    record: Callable[[Iterator[stories.Story], random.Random], dict[str, Any]]


def _text(told: Iterator[stories.Story], rng: random.Random) -> dict[str, Any]:
    prose = [story.as_prose(rng) for story in islice(told, STORIES_PER_TEXT)]
    if rng.random() >= TALK_SHARE:
        return {"text": " ".join(prose)}
    turns = zip(cycle(("user", "assistant")), prose, strict=False)
    return {"text": "\n".join(f"{TURN}{role}\n{text}{END}" for role, text in turns)}


def _chat(told: Iterator[stories.Story], rng: random.Random) -> dict[str, Any]:
    return {"messages": next(told).as_chat()}


BUILTINS = {
    "quickstart-text": Builtin(9_000, 100, _text),
    "quickstart-chat": Builtin(4_000, 400, _chat),
}


def write(name: str, folder: Path) -> dict[str, Path]:
    """Write the built-in data set `name` as JSONL into `folder`: "train" and "validation" -> file.

    The same bytes on every machine; no story of validation occurs in train, nor in the train split
    of another built-in data set. Raises `ConfigError` for an unknown name, `StorageError` if the
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
        told = stories.stories(rng, held_out=split == "validation")
        lines = (json.dumps(builtin.record(told, rng)) + "\n" for _ in range(count))
        files[split] = Path(folder) / f"{name}.{split}.jsonl"
        write_atomic(files[split], "".join(lines))
    return files
