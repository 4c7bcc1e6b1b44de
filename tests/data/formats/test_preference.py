"""Pairs of answers, one of which is preferred."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.config.check import checks
from launcher.config.schema import Config
from launcher.core.errors import ConfigError
from launcher.data import formats
from launcher.data.cache import TokenCache
from launcher.data.formats import Preference
from launcher.data.prepare.preparation import prepare
from support.formats import read

Configure = Callable[..., Config]
MakeData = Callable[..., Path]


USER = {"role": "user", "content": "2 + 2?"}


GOOD = {"role": "assistant", "content": "4"}


BAD = {"role": "assistant", "content": "5"}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": GOOD, "rejected": BAD},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {
            "input": {"messages": [USER]},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        },
    ],
)
def test_preference_layouts_are_one(record: dict[str, Any]) -> None:
    assert formats.detect([record], {}) == "preference"
    assert read("preference", record) == Preference([USER], [GOOD], [BAD])


def test_preference_without_a_prompt_has_whole_texts() -> None:
    assert read("preference", {"chosen": "4", "rejected": "5"}) == Preference([], [GOOD], [BAD])


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"chosen": "a"}, "no field 'rejected'"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": "p", "chosen": "", "rejected": "a"}, "chosen is empty"),
        ({"prompt": "p", "chosen": 4, "rejected": "a"}, "'chosen' is a number"),
        ({"prompt": "p", "chosen": [USER], "rejected": [BAD]}, "chosen ends with user"),
        ({"prompt": [{}], "chosen": "a", "rejected": "b"}, "message 1 has no role"),
    ],
)
def test_preference_refuses(record: dict[str, Any], found: str) -> None:
    assert found in read("preference", record).found


def test_pairs_are_not_for_supervised_fine_tuning(
    configure: Configure, make_data: MakeData
) -> None:
    data = make_data([{"prompt": "p", "chosen": "a", "rejected": "b"}])
    with pytest.raises(ConfigError, match="sft with preference data") as caught:
        prepare(configure(train=data))
    hint = caught.value.problems[0].hint
    found = checks.check(configure(train=data, format="preference"), world_size=1, has_gpu=False)
    assert any("sft with data.format=preference" in str(problem) for problem in found)
    assert "data.columns={completion: chosen}" in hint
    config = configure(train=data, format="prompt", columns={"completion": "chosen"})
    assert len(TokenCache.open(str(prepare(config)["train"]))) == 1
