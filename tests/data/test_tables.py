"""Tables: what Arrow made up is taken out, what was written stays; folders of `save_to_disk`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.schema import Config
from launcher.core.errors import DataError
from launcher.data.cache import TokenCache
from launcher.data.prepare.preparation import prepare
from launcher.data.sources import arrow, chunks, remote
from launcher.fingerprint import HubData, RemoteData, locate
from support.chats import chat

pyarrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
datasets = pytest.importorskip("datasets")

Configure = Callable[..., Config]


def read(path: Path) -> list[Any]:
    return [record for chunk in chunks(path, 0) for _, record in chunk.parse()]


def through(rows: list[dict[str, Any]], schema: Any = None) -> list[dict[str, Any]]:
    return list(arrow.records(pyarrow.Table.from_pylist(rows, schema=schema)))


def test_fields_that_other_rows_have_are_no_fields_of_a_row(tmp_path: Path) -> None:
    def row(name: str, arguments: dict[str, Any], properties: dict[str, Any]) -> dict[str, Any]:
        function = {"name": name, "parameters": {"type": "object", "properties": properties}}
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        parts = [{"type": "text", "text": name}]
        return {
            "tools": [{"type": "function", "function": function}],
            "messages": [
                {"role": "user", "content": parts},
                {"role": "assistant", "tool_calls": [call]},
                {"role": "tool", "name": name, "content": parts},
            ],
        }

    enum = {"type": "string", "enum": ["a", None]}
    rows = [
        row("move", {"x": 1, "to": {"deep": {"y": 2}}}, {"x": {"type": "integer"}}),
        row("say", {"words": ["a", None]}, {"words": enum}),
        row("wait", {}, {}),
    ]
    rows[0]["messages"][0]["content"].append({"type": "image", "url": "x"})
    # A struct without fields cannot be written, so that the fields of others are its own nulls.
    for name in ("a.parquet", "a.arrow"):
        path = tmp_path / name
        table = pyarrow.Table.from_pylist(rows)
        if name.endswith("parquet"):
            parquet.write_table(table, path)
        else:
            with pyarrow.ipc.new_file(path, table.schema) as file:
                file.write_table(table)
        assert read(path) == rows


def test_columns_lists_and_maps_keep_their_nulls() -> None:
    schema = pyarrow.schema(
        [
            ("text", pyarrow.string()),
            ("list", pyarrow.list_(pyarrow.struct([("a", pyarrow.int64())]))),
            ("map", pyarrow.map_(pyarrow.string(), pyarrow.struct([("b", pyarrow.int64())]))),
        ]
    )
    row = {"text": None, "list": [{"a": 1}, None, {}], "map": [("k", {"b": None}), ("n", None)]}
    expected = {"text": None, "list": [{"a": 1}, None, {}], "map": {"k": {}, "n": None}}
    assert through([row], schema) == [expected]


NESTED = st.recursive(
    st.integers(0, 9) | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
    max_leaves=6,
)


@settings(deadline=None)
@given(st.lists(st.dictionaries(st.sampled_from("xy"), NESTED, max_size=2), min_size=1, max_size=4))
def test_what_a_table_gives_back_is_what_was_written(rows: list[dict[str, Any]]) -> None:
    rows = [{"row": row} for row in rows]
    try:
        table = pyarrow.Table.from_pylist(rows)
    except (pyarrow.ArrowException, TypeError):  # one field of two types
        return
    assert list(arrow.records(table)) == rows


def test_json_lines_keep_the_nulls_that_a_user_wrote(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    record = {"tools": [{"default": None, "enum": [1, None]}], "arguments": {"x": None}}
    path.write_text(json.dumps(record))
    assert read(path) == [record]


def test_a_hub_data_set_has_the_fields_that_were_written(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 0, "of": {"x": 1}}, {"text": "b", "label": 1, "of": {"y": None}}]
    data = datasets.Dataset.from_list(rows)
    data = data.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    data.to_parquet(tmp_path / "hub" / "train.parquet")
    source = HubData(str(tmp_path / "hub"), None, ("train",), None)
    assert [record for chunk in chunks(source, 0) for _, record in chunk.parse()] == [
        {"text": "a", "label": "no", "of": {"x": 1}},
        {"text": "b", "label": "yes", "of": {}},
    ]


def save(data: Any, folder: Path, **options: Any) -> Path:
    data.save_to_disk(str(folder), **options)
    return folder


def made(count: int, start: int = 0) -> Any:
    rows = [chat(f"what is {i}?", f"it is {i}") for i in range(start, start + count)]
    return datasets.Dataset.from_list(rows)


def origins(config: Config) -> list[str]:
    cache = TokenCache.open(str(prepare(config)["train"]))
    return [cache.where(i) for i in range(len(cache))]


def test_a_saved_data_set_is_a_source(configure: Configure, tmp_path: Path) -> None:
    folder = save(made(5), tmp_path / "all" / "one", num_shards=2)
    # What map() leaves beside it is no part of it.
    (folder / "cache-1.arrow").write_bytes((folder / "data-00000-of-00002.arrow").read_bytes())
    shards = [folder / f"data-0000{i}-of-00002.arrow" for i in range(2)]
    assert locate(configure(train=folder), "train") == shards
    assert locate(configure(train=f"{folder}/*"), "train")[-2:] == shards  # no JSON about it
    assert origins(configure(train=folder)) == [
        f"{shards[i]}:{line}" for i, line in ((0, 1), (0, 2), (0, 3), (1, 1), (1, 2))
    ]
    # In a folder with other data, its rows come at its place.
    (above := folder.parent / "z.jsonl").write_text(json.dumps(chat("a", "b")))
    (folder.parent / "dataset_info.json").write_text('{"mine": {"file_name": "z.jsonl"}}')
    assert locate(configure(train=folder.parent), "train") == [*shards, above]


def test_a_selection_is_saved_as_its_rows(configure: Configure, tmp_path: Path) -> None:
    folder = save(made(4).select([3, 1]), tmp_path / "two")
    rows = [row for path in locate(configure(train=folder), "train") for row in read(path)]
    assert [row["messages"][0]["content"] for row in rows] == ["what is 3?", "what is 1?"]


def test_a_saved_dictionary_has_splits(configure: Configure, tmp_path: Path) -> None:
    folder = tmp_path / "splits"
    save(datasets.DatasetDict(train=made(3), test=made(2, 3), other=made(1, 5)), folder)
    config = configure(train=folder, validation=folder)
    assert {path.parent.name for path in locate(config, "train")} == {"train"}
    assert {path.parent.name for path in locate(config, "validation")} == {"test"}
    (folder / "dataset_dict.json").write_text('{"splits": ["test", "other"]}')
    with pytest.raises(DataError, match="the splits test, other there") as caught:
        locate(config, "train")
    hint = caught.value.problems[0].hint
    assert hint == f"name one: data.train={folder / 'test'}"
    assert locate(configure(train=folder / "test"), "train")
    with pytest.raises(DataError, match="DatasetDict of save_to_disk inside"):
        locate(configure(train=tmp_path), "train")


@pytest.mark.parametrize(
    ("state", "found"),
    [
        ({}, "does not say which files"),
        ([], "does not say which files"),
        ({"_data_files": [{"filename": "gone.arrow"}]}, "is no file"),
        ({"_data_files": [], "_indices_data_files": [{"filename": "i.arrow"}]}, "file of indices"),
    ],
)
def test_a_saved_data_set_that_is_damaged(
    configure: Configure, tmp_path: Path, state: Any, found: str
) -> None:
    folder = save(made(1), tmp_path / "one")
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match=found):
        locate(configure(train=folder), "train")


def test_classes_of_a_saved_data_set_come_by_name(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": 1}, {"text": "b", "label": -1}, {"text": "c", "label": None}]
    data = datasets.Dataset.from_list(rows)
    data = data.cast_column("label", datasets.ClassLabel(names=["no", "yes"]))
    (path,) = save(data, tmp_path / "one").glob("*.arrow")
    assert [row["label"] for row in read(path)] == ["yes", -1, None]


def test_a_saved_data_set_behind_a_url(tmp_path: Path) -> None:
    folder = save(made(5), tmp_path / "one", num_shards=2)
    (folder / "cache-1.arrow").write_bytes(b"x")
    source = RemoteData(f"file://{folder}", tmp_path / "fetched")
    remote.fetch(source)
    files = json.loads((tmp_path / "fetched" / "files.json").read_text())["files"]
    assert [Path(file["url"]).name for file in files] == [
        f"data-0000{i}-of-00002.arrow" for i in range(2)
    ]
    save(datasets.DatasetDict(train=made(1), test=made(1)), tmp_path / "two")
    with pytest.raises(DataError, match="of several splits"):
        remote.fetch(RemoteData(f"file://{tmp_path / 'two'}", tmp_path / "fetched"))


PNG = b"\x89PNG\xff\x00"
STORED = {"bytes": PNG, "path": None}
TALK = {"messages": chat("q", "a")["messages"]}
PAIR = {"prompt": "q", "completion": "a"}


def written(folder: Path, rows: list[dict[str, Any]], ending: str) -> Path:
    table = pyarrow.Table.from_pylist(rows)
    path = folder / f"rows.{ending}"
    if ending == "parquet":
        parquet.write_table(table, path)
        return path
    with pyarrow.OSFile(str(path), "wb") as out, pyarrow.ipc.new_file(out, table.schema) as file:
        file.write_table(table)
    return path


@pytest.mark.thorough
@pytest.mark.parametrize("ending", ["parquet", "arrow"])
@pytest.mark.parametrize(
    ("row", "column", "found"),
    [
        (PAIR | {"image": PNG}, "image", "only text is trained on"),
        (PAIR | {"image": STORED}, "image", "only text is trained on"),
        (TALK | {"audio": STORED}, "audio", "only text is trained on"),
        (TALK | {"photos": [STORED, STORED]}, "photos", "only text is trained on"),
        (PAIR | {"scan": STORED}, "scan", "only text is trained on"),
        (TALK | {"system": b"Be kind."}, "system", "column 'system' is binary, not text"),
        (TALK | {"tools": b"[]"}, "tools", "column 'tools' is binary, not text"),
        (PAIR | {"chat_template_kwargs": b"{}"}, "chat_template_kwargs", "is binary, not text"),
        (PAIR | {"weight": b"1"}, "weight", "column 'weight' is binary, not text"),
    ],
)
def test_a_binary_column_is_named_and_can_be_left_aside(
    configure: Configure, tmp_path: Path, row: dict[str, Any], column: str, found: str, ending: str
) -> None:
    path = written(tmp_path, [row] * 3, ending)
    with pytest.raises(DataError) as caught:
        prepare(configure(train=path))
    (problem,) = caught.value.problems
    assert problem.where == f"{path}:1"
    assert repr(column) in problem.found
    assert found in problem.found
    # As the hint says it is typed.
    assert problem.hint.endswith(f"data.columns.{column}=")
    cache = TokenCache.open(str(prepare(configure(train=path, columns={column: ""}))["train"]))
    assert len(cache) == 3


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"prompt": b"q", "completion": "a"}, "prompt"),
        ({"prompt": "q", "completion": PNG}, "completion"),
        ({"messages": json.dumps(TALK["messages"]).encode()}, "messages"),
        ({"text": "q", "label": b"a"}, "label"),
    ],
)
def test_what_a_format_needs_comes_from_another_column(
    configure: Configure, tmp_path: Path, row: dict[str, Any], column: str
) -> None:
    plain = {"prompt": "q", "completion": "a", "messages": TALK["messages"], "label": "a"}
    path = written(tmp_path, [row | {"other": plain[column]}] * 3, "parquet")
    with pytest.raises(DataError, match=f"column '{column}' is binary, not text") as caught:
        prepare(configure(train=path))
    hint = caught.value.problems[0].hint
    assert hint.startswith("write it as text")
    assert hint.endswith(f"data.columns.{column}=COLUMN")
    assert prepare(configure(train=path, columns={column: "other"}))["train"]


def test_binary_members_of_turns_are_named(configure: Configure, tmp_path: Path) -> None:
    said = {"messages": [{"role": "user", "content": b"q"}, *TALK["messages"][1:]]}
    with pytest.raises(DataError, match=r"message 1 \(user\) is binary data, not text"):
        prepare(configure(train=written(tmp_path, [said], "parquet")))
    user, answer = TALK["messages"]
    shown = {"messages": [user | {"scan": STORED}, answer]}
    path = written(tmp_path, [shown], "parquet")
    with pytest.raises(DataError, match="'scan' in message 1 is not read") as caught:
        prepare(configure(train=path))
    assert caught.value.problems[0].hint.endswith("data.columns.scan=")
    assert prepare(configure(train=path, columns={"scan": ""}))["train"]


def test_images_alone_are_no_text(configure: Configure, tmp_path: Path) -> None:
    path = written(tmp_path, [{"picture": STORED, "label": 1}], "parquet")
    with pytest.raises(DataError) as caught:
        prepare(configure(train=path))
    assert "'picture' is not read (what is seen or heard" in caught.value.problems[0].hint


def test_bytes_of_a_users_own_are_left_alone(configure: Configure, tmp_path: Path) -> None:
    path = written(tmp_path, [PAIR | {"digest": PNG, "meta": {"bytes": 7, "path": "x"}}], "parquet")
    assert prepare(configure(train=path))["train"]
