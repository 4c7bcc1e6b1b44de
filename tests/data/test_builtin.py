"""The generated data: the same everywhere, and nothing held out is ever trained on."""

from __future__ import annotations

import json
import random
import re
from itertools import islice
from pathlib import Path

import pytest

from launcher import word_problems
from launcher.core.errors import ConfigError
from launcher.data import builtin

#: Those that are made; the others are read from the standard library.
MADE = [name for name in builtin.BUILTINS if not name.startswith("docstring")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Path]]:
    folder = tmp_path_factory.mktemp("builtin")
    return {name: builtin.write(name, folder) for name in MADE}


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.thorough
@pytest.mark.parametrize("name", MADE)
def test_writes_the_stated_number_of_records(name, files):
    expected = builtin.BUILTINS[name]
    counts = {split: len(records(path)) for split, path in files[name].items()}
    assert counts == {"train": expected.train, "validation": expected.validation}


@pytest.mark.thorough
@pytest.mark.parametrize("name", MADE)
def test_second_writing_gives_the_same_bytes(name, files, tmp_path):
    for split, path in builtin.write(name, tmp_path).items():
        assert path.read_bytes() == files[name][split].read_bytes()


def test_first_record_is_the_same_on_every_machine(files):
    first = records(files["quickstart-chat"]["train"])[0]["messages"]
    assert [turn["role"] for turn in first] == ["user", "assistant"]
    assert [turn["content"] for turn in first] == [
        "Cleo has 6 coins and 2 hats. How many coins does Cleo have?",
        "Cleo has 6 coins.\n#### 6",
    ]


def test_no_record_comes_twice(files):
    for splits in files.values():
        lines = [line for path in splits.values() for line in path.read_text().splitlines()]
        assert len(set(lines)) == len(lines)


def test_held_out_facts_occur_in_no_training_text(files):
    held_out = [
        turn["content"]
        for record in records(files["quickstart-chat"]["validation"])
        for turn in record["messages"]
        if turn["role"] == "user"
    ]
    # A story with two things is held out for one question, and may be trained on for the other.
    facts = {re.sub(r" How many .*", "", text) for text in held_out if " and " not in text}
    assert len(facts) > 100
    trained = files["quickstart-text"]["train"].read_text()
    assert not [fact for fact in facts if fact in trained]


def test_sides_of_the_split_share_no_story():
    def keys(*, held_out: bool) -> set[str]:
        told = word_problems.stories(random.Random(0), held_out=held_out)
        return {story.key for story in islice(told, 2_000)}

    train, validation = keys(held_out=False), keys(held_out=True)
    assert len(train) == len(validation) == 2_000
    assert not train & validation


def test_every_answer_follows_from_the_facts(files):
    for record in records(files["quickstart-chat"]["train"])[:500]:
        question, answer = (turn["content"] for turn in record["messages"])
        solution, _, number = answer.partition("\n#### ")
        terms = [int(term) for term in re.findall(r"\d+", question)]
        if " + " in solution:
            assert int(number) == sum(terms)
        elif " - " in solution:
            assert int(number) == terms[0] - terms[1]
        else:
            assert int(number) in terms
        assert re.search(rf"\b{number}\b", solution)


def test_unknown_name_says_what_there_is(tmp_path):
    with pytest.raises(ConfigError, match="quickstart-chat"):
        builtin.write("quickstart-chats", tmp_path)
    assert not list(tmp_path.iterdir())
