"""Reading files: every record with its line, and every kind of damage with its place."""

import contextlib
import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.errors import ConfigError, DataError
from launcher.data.formats import BadRecord
from launcher.data.sources import chunks, limits
from launcher.fingerprint import BuiltinData, HubData


def read(path: Path) -> list[tuple[int, Any]]:
    return [pair for chunk in chunks(path, 0) for pair in chunk.parse()]


def reasons(path: Path) -> list[tuple[int, str]]:
    return [(line, item.found) for line, item in read(path) if isinstance(item, BadRecord)]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks and limits so small that a few lines cross them."""
    monkeypatch.setattr(limits, "CHUNK_BYTES", 16)
    monkeypatch.setattr(limits, "CHUNK_RECORDS", 2)
    monkeypatch.setattr(limits, "MAX_RECORD_BYTES", 100)


RECORDS = [{"text": "x" * n, "n": n} for n in (1, 50, 3, 0, 20, 7)]


def test_jsonl(tmp_path: Path, small: None) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(record) for record in RECORDS]
    path.write_text("\ufeff" + lines[0] + "\r\n\n  \n" + "\n".join(lines[1:]), encoding="utf-8")
    assert read(path) == list(zip([1, 4, 5, 6, 7, 8], RECORDS, strict=True))


def test_jsonl_damage(tmp_path: Path, small: None) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(
        b'{"a": 1}\n{"a": }\n\xff\n[1]\n' + b"9" * 5000 + b'\n{"a": 2}\n{"a": "' + b"y" * 500
    )
    assert [line for line, item in read(path) if not isinstance(item, BadRecord)] == [1, 6]
    assert reasons(path) == [
        (2, "broken JSON at column 7: Expecting value"),
        (3, "invalid UTF-8: byte 0xff at position 1"),
        (4, "the record is a list, not an object"),
        (5, "a line longer than 0 MiB"),
        (7, "a line longer than 0 MiB"),
    ]


def test_deep_nesting_and_huge_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": ' + "[" * 100_000 + "\n" + '{"a": ' + "9" * 5000 + "}\n")
    assert [line for line, found in reasons(path) if "cannot be read" in found] == [1, 2]


def test_utf16_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "ü"}\n', encoding="utf-16")
    (_, reason), *_ = read(path)
    assert "UTF-16" in reason.hint


def test_json_list(tmp_path: Path, small: None) -> None:
    path = tmp_path / "a.json"
    for indent in (None, 2):
        path.write_text(json.dumps(RECORDS, indent=indent))
        assert read(path) == list(enumerate(RECORDS, 1))
    path.write_text(" [ ] ")
    with pytest.raises(DataError, match="there is no record in it"):
        read(path)


def test_json_file_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("\n".join(map(json.dumps, RECORDS)))
    assert read(path) == list(enumerate(RECORDS, 1))


@pytest.mark.parametrize(
    ("content", "good", "found"),
    [
        (b'[{"a": 1}, {"a": }]', 1, "broken JSON from here on"),
        (b'[{"a": 1} {"a": 2}]', 1, "broken JSON from here on: Expecting ','"),
        (b'[{"a": 1}, {"a": 2}', 2, "broken JSON from here on"),
        (b'[{"a": 1},]', 1, "broken JSON from here on"),
        (b'"text"', 0, "broken JSON from here on: Expecting '['"),
        (b"[[1]]", 0, "the record is a list"),
        (b'[{"a": "' + b"z" * 300 + b'"}]', 0, "a record longer"),
        (b"[" * 100_000, 0, ""),
    ],
)
def test_json_damage(tmp_path: Path, small: None, content: bytes, good: int, found: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    records = read(path)
    assert len(records) == good + 1
    assert records[-1][0] == good + 1
    assert found in reasons(path)[0][1]


def test_csv(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('prompt,completion\n"a\nb",c\nd\ne,"f,g"\n', encoding="utf-8-sig")
    assert [(line, item) for line, item in read(path) if isinstance(item, dict)] == [
        (3, {"prompt": "a\nb", "completion": "c"}),
        (5, {"prompt": "e", "completion": "f,g"}),
    ]
    assert reasons(path) == [(4, "the row does not have the 2 fields of line 1")]


def test_csv_goes_on_after_a_broken_row(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text('a,b\n1,"x"y\n2,z\n')
    assert [item for _, item in read(path) if isinstance(item, dict)] == [{"a": "2", "b": "z"}]
    assert reasons(path)[0][0] == 2
    assert "broken CSV" in reasons(path)[0][1]


def test_text_file_is_one_record(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one\ntwo\n")
    assert read(path) == [(1, {"text": "one\ntwo\n"})]
    path.write_bytes(b"caf\xe9")
    assert reasons(path) == [(1, "invalid UTF-8: byte 0xe9 at position 4")]


def test_parquet(tmp_path: Path, small: None) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    messages = [{"messages": [{"role": "user", "content": "ü"}]}] * 5
    parquet.write_table(pyarrow.Table.from_pylist(messages), path)
    assert read(path) == list(enumerate(messages, 1))
    path.write_bytes(b"PAR1 this is none")
    with pytest.raises(DataError, match="not readable as Parquet"):
        read(path)


def test_hub_data_that_cannot_be_reached() -> None:
    pytest.importorskip("datasets")
    with pytest.raises(DataError) as caught:
        list(chunks(HubData("no/such-data", None, ("train",), None), 0))
    assert "without network" in caught.value.problems[0].hint


def test_missing_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ConfigError, match="needs datasets"):
        list(chunks(HubData("some/data", None, ("train",), None), 0))


def test_builtin_is_written_at_first_use(tmp_path: Path) -> None:
    source = BuiltinData("quickstart-chat", "validation", tmp_path)
    first = next(iter(chunks(source, 0)))
    line, record = next(iter(first.parse()))
    assert line == 1
    assert record["messages"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.txt", "a.parquet"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    with pytest.raises(DataError) as caught:
        read(path)
    assert caught.value.problems[0].where == str(path)
    assert "empty" in str(caught.value)


def test_unknown_ending(tmp_path: Path) -> None:
    path = tmp_path / "a.docx"
    path.write_text("x")
    with pytest.raises(DataError, match=r"files ending in \.docx"):
        read(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("{}")
    path.chmod(0)
    with pytest.raises(DataError, match="cannot be read"):
        read(path)


@given(st.lists(st.binary(max_size=40)))
def test_any_bytes_give_one_record_or_reason_a_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("any") / "a.jsonl"
    content = b"\n".join(line.replace(b"\n", b"") for line in lines)
    if not content.strip():
        return
    path.write_bytes(content)
    expected = [n for n, line in enumerate(content.split(b"\n"), 1) if line.strip()]
    assert [line for line, _ in read(path)] == expected
    for name in ("a.json", "a.csv", "a.txt"):
        other = path.with_name(name)
        other.write_bytes(content)
        with contextlib.suppress(DataError):  # there may be no record in it
            assert all(isinstance(item, dict | BadRecord) for _, item in read(other))


ROWS = st.lists(st.fixed_dictionaries({"a": st.text(), "b": st.text()}), min_size=1, max_size=5)


@given(ROWS)
def test_csv_and_json_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, str]]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    (folder / "a.json").write_text(json.dumps(rows))
    assert [item for _, item in read(folder / "a.json")] == rows
    rows = [
        {key: "".join(c for c in text if c not in "\r\0") for key, text in row.items()}
        for row in rows
    ]
    rows = [{key: text.encode(errors="ignore").decode() for key, text in r.items()} for r in rows]
    with open(folder / "a.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["a", "b"], quoting=csv.QUOTE_ALL)
        writer.writeheader()
        writer.writerows(rows)
    assert [item for _, item in read(folder / "a.csv")] == rows
