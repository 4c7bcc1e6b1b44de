"""Held-out records by the values of their fields."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.config.schema import Config
from launcher.core.errors import DataError
from launcher.data.cache import TokenCache
from launcher.data.prepare.fields import ABSENT, held_out_groups
from launcher.data.prepare.preparation import prepare

Configure = Callable[..., Config]
MakeData = Callable[..., Path]
LEVELS = ["easy", "hard", None]


def records(count: int) -> list[dict]:
    return [
        {"prompt": f"question {i}", "completion": f"answer {i}", "meta": {"level": LEVELS[i % 3]}}
        for i in range(count)
    ]


@pytest.mark.parametrize("with_file", [True, False])
def test_every_held_out_record_is_in_the_group_of_its_own_value(
    configure: Configure, make_data: MakeData, with_file: bool
) -> None:
    path = make_data(records(60))
    config = configure(train=path, validation_share=0.3)
    if with_file:
        config.data.validation = str(make_data(records(20), "held.jsonl"))
    config.eval.slices = ["meta.level"]
    folder = prepare(config)["validation"]
    assert folder is not None
    cache = TokenCache.open(folder)
    (values,) = held_out_groups(config, Path(folder)).values()
    assert sorted(i for ids in values.values() for i in ids) == list(range(len(cache)))
    for value, ids in values.items():
        for i in ids:
            line = int(cache.where(i).rpartition(":")[2])
            assert value == (LEVELS[(line - 1) % 3] or ABSENT)


def test_a_field_that_no_record_has_is_refused_with_those_that_there_are(
    configure: Configure, make_data: MakeData
) -> None:
    path = make_data(records(9))
    config = configure(train=path, validation=path)
    config.eval.slices = ["mata"]
    folder = prepare(config)["validation"]
    with pytest.raises(DataError, match="no held-out record has a field 'mata'") as caught:
        held_out_groups(config, Path(str(folder)))
    assert "did you mean 'meta'" in str(caught.value)
