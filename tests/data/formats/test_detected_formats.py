"""What prepared files are taken for where no format is named."""

from collections.abc import Callable
from pathlib import Path

import pytest

from launcher.config.schema import Config
from launcher.core.errors import LauncherError
from launcher.data.cache import TokenCache
from launcher.data.prepare.preparation import prepare
from support.chats import chat

Configure = Callable[..., Config]
MakeData = Callable[..., Path]


def test_files_of_two_formats_are_told_apart(configure: Configure, make_data: MakeData) -> None:
    first = make_data([chat("a", "b")], "a.jsonl")
    second = make_data([{"prompt": "a", "completion": "b"}], "b.jsonl")
    with pytest.raises(LauncherError, match="the records are prompt, those of") as caught:
        prepare(configure(train=first.parent))
    assert caught.value.problems[0].where == str(second)
    config = configure(train=[{"path": str(first)}, {"path": str(second)}])
    assert TokenCache.open(str(prepare(config)["train"])).index.records == 2


def test_two_schemas_in_one_file_stop_at_the_line(
    configure: Configure, make_data: MakeData
) -> None:
    data = make_data([chat("a", "b"), {"prompt": "a", "completion": "b"}])
    with pytest.raises(LauncherError, match="no field 'messages'") as caught:
        prepare(configure(train=data))
    assert caught.value.problems[0].where == f"{data}:2"


def test_labels_beside_text_do_not_matter_where_every_token_is_learned(
    configure: Configure, make_data: MakeData
) -> None:
    data = make_data([{"text": "some text", "label": "x"}])
    for objective, name in (("text", "text"), ("sft", "classification")):
        config = configure(train=data, objective=objective)
        assert TokenCache.open(str(prepare(config)["train"])).index.format == name
