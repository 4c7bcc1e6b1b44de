"""Compressed files, Arrow, folders with links: everything is read, or refused with its name."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher import fingerprint
from launcher.config.schema import Config
from launcher.core.errors import DataError
from launcher.data.sources import chunks, limits

zstandard = pytest.importorskip("zstandard")

RECORDS = [{"text": f"record {i} ü"} for i in range(300)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def pack(data: bytes, ending: str) -> bytes:
    return gzip.compress(data) if ending == ".gz" else zstandard.ZstdCompressor().compress(data)


def read(path: Path) -> list[Any]:
    return [record for chunk in chunks(path, 0) for _, record in chunk.parse()]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_every_text_format_can_be_compressed(tmp_path: Path, ending: str) -> None:
    csv = "text\n" + "".join(f"{record['text']}\n" for record in RECORDS)
    for name, content in (
        ("a.jsonl", LINES),
        ("a.json", json.dumps(RECORDS).encode()),
        ("b.json", LINES),
        ("a.csv", csv.encode()),
    ):
        path = tmp_path / (name + ending)
        path.write_bytes(pack(content, ending))
        assert read(path) == RECORDS
    path = tmp_path / f"A.TXT{ending}"
    path.write_bytes(pack(b"one\ntwo", ending))
    assert read(path) == [{"text": "one\ntwo"}]


@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_several_frames_follow_each_other(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(LINES, ending) + pack(LINES, ending))
    assert read(path) == RECORDS * 2


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([".gz", ".zst"]), st.data())
def test_a_cut_or_changed_file_is_never_taken_for_whole(
    tmp_path_factory: pytest.TempPathFactory, ending: str, data: st.DataObject
) -> None:
    whole = pack(LINES, ending)
    if ending == ".zst":
        whole = zstandard.ZstdCompressor(write_checksum=True).compress(LINES)
    path = tmp_path_factory.mktemp("cut") / f"a.jsonl{ending}"
    if data.draw(st.booleans()):
        path.write_bytes(whole[: data.draw(st.integers(1, len(whole) - 1))])
    else:
        place = data.draw(st.integers(0, len(whole) - 1))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :])
    # Names and times in the head of a gzip file are not part of its content.
    assert outcome(path) in (RECORDS, str(path))


def outcome(path: Path) -> Any:
    """The records, or what the error names."""
    try:
        return read(path)
    except DataError as error:
        return error.problems[0].where


@pytest.mark.thorough
@pytest.mark.parametrize("ending", [".gz", ".zst"])
def test_a_bomb_is_refused(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MIN_UNPACKED_BYTES", 1 << 20)
    path = tmp_path / f"a.jsonl{ending}"
    path.write_bytes(pack(b'{"text": "a"}\n' * (8 << 20), ending))
    with pytest.raises(DataError, match="unpacks to more than") as caught:
        for _ in chunks(path, 0):
            pass
    assert caught.value.problems[0].where == str(path)
    assert "unpack it yourself" in caught.value.problems[0].hint


def test_compressed_tables_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet.gz"
    path.write_bytes(gzip.compress(b"x"))
    with pytest.raises(DataError, match=r"\.parquet\.gz are not known"):
        read(path)


@pytest.mark.parametrize("kind", ["file", "stream"])
def test_arrow(tmp_path: Path, kind: str) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    ipc = pytest.importorskip("pyarrow.ipc")
    path = tmp_path / "a.arrow"
    table = pyarrow.Table.from_pylist(RECORDS)
    make = ipc.new_file if kind == "file" else ipc.new_stream
    with make(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=70)
    numbered = [pair for chunk in chunks(path, 0) for pair in chunk.parse()]
    assert numbered == list(enumerate(RECORDS, 1))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DataError, match="not readable as Arrow"):
        read(path)


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="two columns are called 'text'"):
        read(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_text("text,text\n1,2\n")
    (reason,) = read(tmp_path / "a.csv")
    assert "two columns are called 'text'" in reason.found


def test_a_folder_with_loops_of_links_is_read_once(
    configure: Callable[..., Config], tmp_path: Path
) -> None:
    folder, other = tmp_path / "data", tmp_path / "other"
    for place in (folder / "deep", other):
        place.mkdir(parents=True)
        (place / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    os.symlink(folder, folder / "deep" / "loop")
    os.symlink(other, folder / "linked")
    (folder / "notes.gz").touch()
    found = fingerprint.locate(configure(train=folder), "train")
    assert found == [folder / "deep" / "a.jsonl.gz", folder / "linked" / "a.jsonl.gz"]
    pattern = fingerprint.locate(configure(train=f"{folder}/**/*.jsonl.gz"), "train")
    assert {Path(str(p)).resolve() for p in pattern} == {p.resolve() for p in found}  # type: ignore[union-attr]
    assert len(pattern) == 2


@pytest.mark.parametrize("kind", ["loop", "nowhere", "pipe"])
def test_what_is_no_file_in_a_folder_is_named(
    configure: Callable[..., Config], tmp_path: Path, kind: str
) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(LINES)
    if kind == "pipe":
        os.mkfifo(folder / "b.jsonl")
    else:
        os.symlink("b.jsonl" if kind == "loop" else "gone", folder / "b.jsonl")
    with pytest.raises(DataError, match="is no file") as caught:
        fingerprint.locate(configure(train=folder), "train")
    assert caught.value.problems[0].where == str(folder / "b.jsonl")


def test_damage_inside_a_deflate_stream_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES)[:-8] + bytes(8))
    with pytest.raises(DataError, match="damaged or cut off"):
        read(path)
