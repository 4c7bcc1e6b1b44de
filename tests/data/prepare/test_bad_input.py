"""Damaged and hostile input: every line is parsed, or refused with its place; nothing is lost."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launcher.config.schema import Config
from launcher.core.errors import DataError, ExitCode
from launcher.data import sources
from launcher.data.cache import TokenCache
from launcher.data.formats import BadRecord, Reader
from launcher.data.prepare.preparation import prepare
from support.chats import chat

Configure = Callable[..., Config]
MakeData = Callable[..., Path]

LINES = [
    json.dumps(record, ensure_ascii=False).encode()
    for record in (
        chat("what?", "thät 🙂"),
        chat("a", "b", weight=0.5),
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}]},
        {"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]},
        {"prompt": "p", "completion": "c"},
        {"instruction": "i", "input": "", "output": "o"},
        {"text": "t", "label": 3},
        {"prompt": "p", "chosen": [{"role": "assistant", "content": "g"}], "rejected": "b"},
        {"text": "plain", "meta": {"deep": [[[{"x": None}]]]}},
    )
]
PIECES = [
    b"\0",
    b"\xff\xfe",
    b'"',
    b"{",
    b"}",
    b"[" * 3000,
    b"null",
    b"NaN",
    b"1e999",
    b"9" * 5000,
    b"\\ud800",
    b"\xed\xa0\x80",
    b'"weight": "x",',
    b'"role": 3,',
    b'"messages": [],',
    b"\r",
    b"\xef\xbb\xbf",
    b"\xe2\x80\xa8",
]


def mutated(rng: random.Random) -> bytes:
    line = bytearray(rng.choice(LINES))
    for _ in range(rng.randint(0, 4)):
        place = rng.randint(0, len(line))
        match rng.randint(0, 4):
            case 0:
                line[place:place] = rng.choice(PIECES)
            case 1:
                del line[place : place + rng.randint(1, 20)]
            case 2 if line:
                line[min(place, len(line) - 1)] = rng.randint(0, 255)
            case 3:
                line[place:place] = line[: rng.randint(0, len(line))]
            case 4:
                other = rng.choice(LINES)
                line[place:] = other[rng.randint(0, len(other)) :]
    return bytes(line).replace(b"\n", b" ")


def fuzz(path: Path, count: int, seed: int) -> dict[str, int]:
    """Read mutated lines in every format: how many were read and how many refused."""
    rng = random.Random(seed)
    lines = [mutated(rng) for _ in range(count)]
    path.write_bytes(b"\n".join(lines))
    expected = [number for number, line in enumerate(lines, 1) if line.strip()]
    readers = [Reader(name, {}) for name in ("chat", "sharegpt", "preference", "prompt")]
    readers += [Reader(name, {}) for name in ("alpaca", "classification", "text")]
    seen, result = [], {"read": 0, "refused": 0}
    for chunk in sources.chunks(path, 0):
        for number, record in chunk.parse():
            seen.append(number)
            outcomes = [reader.read(record) for reader in readers]
            refused = [outcome for outcome in outcomes if isinstance(outcome, BadRecord)]
            assert all(reason.found for reason in refused)
            result["read" if len(refused) < len(outcomes) else "refused"] += 1
    assert seen == expected  # each line once, in order, none dropped
    return result


@pytest.mark.parametrize("seed", range(3))
def test_mutated_lines_are_read_or_refused(tmp_path: Path, seed: int) -> None:
    result = fuzz(tmp_path / "a.jsonl", 2000, seed)
    assert result["read"] > 200
    assert result["refused"] > 500


@pytest.mark.slow
def test_a_hundred_thousand_mutated_lines(tmp_path: Path) -> None:
    result = fuzz(tmp_path / "a.jsonl", 100_000, 11)
    assert sum(result.values()) <= 100_000


def test_mutated_lines_through_the_whole_preparation(
    configure: Configure, make_data: MakeData, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(5)
    lines = [LINES[0], *(mutated(rng) for _ in range(1500))]
    config = configure(train=make_data(lines), bad_records="skip")
    counts = TokenCache.open(str(prepare(config)["train"])).index.counts
    assert counts.read == sum(bool(line.strip()) for line in lines)
    assert 0 < counts.skipped < counts.read
    assert f"{counts.skipped:,} skipped" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (b'{"text": "a", "text": "b"}', "the key 'text' is there twice"),
        (b'{"text": "a", "m": {"k": 1, "k": 2}}', "the key 'k' is there twice"),
        (b'{"text": 3}', "field 'text' is a number"),
        (b'{"text": "a\0b"}', "a byte of value 0 at position 12"),
        (b'{"text": ' + b"[" * 200_000, "cannot be read"),
        (b'{"text": "\\ud800"}', "half of a surrogate pair"),
        (b'{"text": "\xff"}', "invalid UTF-8"),
        (b'["text"]', "a list, not an object"),
        (b"{'text': 'a'}", "broken JSON"),
    ],
)
def test_a_bad_line_is_named(
    configure: Configure, make_data: MakeData, line: bytes, found: str
) -> None:
    data = make_data([{"text": "good"}, line])
    with pytest.raises(DataError, match=found) as caught:
        prepare(configure(train=data, objective="text"))
    problem = caught.value.problems[0]
    assert problem.where == f"{data}:2"
    assert problem.hint
    assert caught.value.exit_code == ExitCode.data


UTF16 = {"a.json": '[{"text": "ü"}]', "a.csv": "text\nü\n", "a.txt": "ü", "a.jsonl": '{"text": ""}'}


@pytest.mark.parametrize("name", UTF16)
def test_utf16_is_recognised_in_every_kind_of_file(
    configure: Configure, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_text(UTF16[name], encoding="utf-16")
    with pytest.raises(DataError) as caught:
        prepare(configure(train=path, format="text", objective="text"))
    assert caught.value.problems[0].where == f"{path}:1"
    assert "UTF-16" in caught.value.problems[0].hint


@pytest.mark.parametrize("name", ["a.csv", "a.txt"])
def test_nul_bytes_are_no_text(configure: Configure, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"text\n" + b"x" * 80 + b"\0y\n")
    with pytest.raises(DataError, match="NUL|value 0"):
        prepare(configure(train=path, format="text", objective="text"))


CHAT = '{"messages": [{"role": "user", "content": %s}, {"role": "assistant", "content": "b"}]}'


@pytest.mark.parametrize(
    ("line", "found", "hint"),
    [
        ((CHAT % "1").encode("utf-16-le"), "a byte of value 0 at position 2", "looks like UTF-16"),
        (CHAT.encode() % b'"a\0b"', "a byte of value 0 at position 45", "damaged there"),
        (b"\0" * 80, "a byte of value 0 at position 1", "damaged there"),
        (b'{"prompt": "a", "completion": "b"}', "the record has: 'prompt', 'completion'", "file"),
        (CHAT.encode() % b"12", "message 1 (user) is a number", "write it as a JSON string"),
        (CHAT.encode() % (b"[" * 90_000 + b"]" * 90_000), "nested too deep", "remove the line"),
        (CHAT.encode() % (b"9" * 9000), "a number of too many digits", "remove the line"),
    ],
)
def test_a_chat_that_is_none_is_explained(
    configure: Configure, make_data: MakeData, line: bytes, found: str, hint: str
) -> None:
    data = make_data([chat("a", "b"), chat("c", "d"), line])
    with pytest.raises(DataError) as caught:
        prepare(configure(train=data))
    problem = caught.value.problems[0]
    assert problem.where == f"{data}:3"
    assert found in problem.found
    assert hint in (problem.hint or "")


def test_blank_lines_before_the_first_record_hide_nothing(
    configure: Configure, tmp_path: Path
) -> None:
    record = json.dumps(chat("a", "b"))
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text("\n" * 300_000 + record)
    data = f"{tmp_path}/*.jsonl"
    cache = TokenCache.open(str(prepare(configure(train=data))["train"]))
    assert [cache.where(i) for i in range(2)] == [
        f"{tmp_path}/{name}:300001" for name in ("a.jsonl", "b.jsonl")
    ]


def test_parquet_without_the_column(configure: Configure, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"question": ["a"], "answer": ["b"]}), path)
    options: dict[str, Any] = {"train": path, "format": "prompt"}
    with pytest.raises(DataError, match="no field 'prompt'") as caught:
        prepare(configure(**options))
    assert caught.value.problems[0].where == f"{path}:1"
    assert "data.columns.prompt=COLUMN" in caught.value.problems[0].hint
    with pytest.raises(DataError, match="no column 'q'"):
        prepare(configure(**options, columns={"prompt": "q"}))
