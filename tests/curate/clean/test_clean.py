"""A cleaned copy: what goes, what stays as it was, and that the input is not touched."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.cli import data
from launcher.config.compose import compose
from launcher.config.schema import Config
from launcher.core.errors import ConfigError, StorageError
from launcher.curate.clean import choice, naming
from launcher.curate.clean.clean import CleanOptions, clean
from launcher.curate.report import report
from support.curation import pairs

Write = Callable[..., str]
Configure = Callable[..., Config]


def lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_drops_are_written_down_and_the_rest_is_as_it_was(
    write: Write, configure: Configure, tmp_path: Path
) -> None:
    records: list[Any] = [{**record, "id": i, "ß": None} for i, record in enumerate(pairs(30))]
    doubtful = [
        {**records[4], "id": 99},
        '{"prompt": ',
        {**records[5], "completion": "I'm sorry, but I can't help with that.", "prompt": "Why so?"},
    ]
    train = write([*records, *doubtful])
    before = Path(train).read_bytes()
    out = tmp_path / "out"
    told = clean(configure(train=train), out, CleanOptions(drop=("exact_duplicates", "refusals")))
    assert lines(out / "train.jsonl") == records
    dropped = lines(out / "dropped.jsonl")
    assert [(entry["where"].rpartition(":")[2], entry["rule"]) for entry in dropped] == [
        ("31", "exact_duplicates"),
        ("32", "broken"),
        ("33", "refusals"),
    ]
    assert all(entry["why"] for entry in dropped)
    assert told["dropped"] == {"exact_duplicates": 1, "broken": 1, "refusals": 1}
    assert told["written"] == 30
    assert Path(train).read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "train.jsonl"]


@pytest.mark.thorough
def test_what_is_cleaned_passes(write: Write, configure: Configure, tmp_path: Path) -> None:
    records, held_out = pairs(60), pairs(20, seed=1)
    doubtful = [
        records[0],
        {**records[1], "prompt": records[1]["prompt"].replace("left", "gone")},
        {**records[1], "prompt": records[1]["prompt"].replace("left", "gone")},
        {**records[2], "completion": "It is not known to anyone at all."},
        {**held_out[3], "completion": "No idea."},
    ]
    config = configure(
        train=write([*records, *doubtful]), validation=write(held_out, "validation.jsonl")
    )
    rules = ("exact_duplicates", "near_duplicates", "conflicts", "leakage")
    clean(config, tmp_path / "out", CleanOptions(drop=rules))
    config.data.train = str(tmp_path / "out" / "train.jsonl")
    assert report.build(config)["verdict"] == "pass"
    # Of a tie neither answer can be told to be right.
    assert len(lines(tmp_path / "out" / "train.jsonl")) == 59


def test_the_majority_decides_a_conflict(
    write: Write, configure: Configure, tmp_path: Path
) -> None:
    records = [{"prompt": "two and two", "completion": answer} for answer in "4545"]
    records.append({"prompt": "Two and two", "completion": "4"})
    clean(configure(train=write(records)), tmp_path / "out", CleanOptions(drop=("conflicts",)))
    assert {record["completion"] for record in lines(tmp_path / "out" / "train.jsonl")} == {"4"}


def test_redaction_reaches_every_text(write: Write, configure: Configure, tmp_path: Path) -> None:
    message = {"role": "user", "content": [{"type": "text", "text": "I am li@firma.de"}]}
    answer = {"role": "assistant", "content": "Hello li@firma.de, key AKIA" + "IOSFODNN7EXAMPLE."}
    record = {"messages": [message, answer], "meta": {"by": "eva@firma.de"}}
    out = tmp_path / "out"
    told = clean(configure(train=write([record])), out, CleanOptions(redact=frozenset({"pii"})))
    text = (out / "train.jsonl").read_text()
    assert "@" not in text
    assert text.count("[EMAIL]") == 3
    assert "AKIA" in text
    assert told["redacted"] == {"e-mail address": 3}


@pytest.mark.parametrize("field", ["label", "kind"])
def test_a_cap_leaves_so_many_of_each(
    field: str, write: Write, configure: Configure, tmp_path: Path
) -> None:
    records = [
        {"text": record["prompt"], "label": "ab"[i % 4 == 0], "kind": i % 4 == 0}
        for i, record in enumerate(pairs(40))
    ]
    out = tmp_path / "out"
    clean(configure(train=write(records)), out, CleanOptions(caps=((field, 12),)))
    assert Counter(r["label"] for r in lines(out / "train.jsonl")) == {"a": 12, "b": 10}


def test_temperature_evens_out(write: Write, configure: Configure, tmp_path: Path) -> None:
    sizes = {"a": 10, "b": 40, "c": 90}
    texts = iter(pairs(140))
    records = [
        {"text": next(texts)["prompt"], "label": label}
        for label, size in sizes.items()
        for _ in range(size)
    ]
    train = write(records)
    for temperature, kept in ((1.0, sizes), (2.0, {"a": 10, "b": 20, "c": 30})):
        out = tmp_path / f"out{temperature}"
        clean(configure(train=train), out, CleanOptions(temperature=temperature))
        assert Counter(r["label"] for r in lines(out / "train.jsonl")) == kept


def test_two_copies_are_the_same(write: Write, configure: Configure, tmp_path: Path) -> None:
    config = configure(train=write([*pairs(300), *pairs(5)]), validation_share=0.2)
    options = CleanOptions(drop=("exact_duplicates",), caps=(("source", 100),))
    for workers in (1, 2):
        config.data.workers = workers
        clean(config, tmp_path / f"out{workers}", options)
    for name in ("train.jsonl", "dropped.jsonl", "clean.json"):
        one, two = ((tmp_path / f"out{workers}" / name).read_bytes() for workers in (1, 2))
        assert one == two


def test_several_files_stay_apart(write: Write, configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "in" / "x").mkdir(parents=True)
    write(pairs(3), "in/a.jsonl")
    write(pairs(4, seed=1), "in/x/a.jsonl")
    out = tmp_path / "out"
    clean(configure(train=str(tmp_path / "in")), out, CleanOptions())
    written = {path.name: len(lines(path)) for path in (out / "train").iterdir()}
    assert written == {"a.jsonl": 3, "a-2.jsonl": 4}


def test_the_input_cannot_be_the_target(write: Write, configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    train = write(pairs(3), "in/a.jsonl")
    for value, out in ((train, "in"), (train, "."), (str(tmp_path / "in"), "in/new")):
        with pytest.raises(ConfigError, match="input"):
            clean(configure(train=value), tmp_path / out, CleanOptions())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(StorageError, match="already"):
        clean(configure(train=train), tmp_path / "full", CleanOptions())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", "in"]


def test_rules_are_named_or_refused() -> None:
    names = choice.rules_named("duplicates, leaks,pii", choice.DROPS, "--drop")
    assert names == ["exact_duplicates", "leakage", "pii"]
    with pytest.raises(ConfigError, match="names no records"):
        choice.rules_named("class_balance", choice.DROPS, "--drop")
    with pytest.raises(ConfigError, match="no rule 'duplikates'"):
        choice.rules_named("duplikates", choice.DROPS, "--drop")


@given(st.lists(st.integers(1, 200), min_size=1, max_size=6), st.floats(1, 50))
def test_no_group_grows_or_goes(sizes: list[int], temperature: float) -> None:
    kept = [choice.evened(size, sizes, temperature) for size in sizes]
    assert all(1 <= after <= before for before, after in zip(sizes, kept, strict=True))
    assert any(after == before for before, after in zip(sizes, kept, strict=True))
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    assert [kept[i] for i in order] == sorted(kept)


def test_there_must_be_something_to_even_out(
    write: Write, configure: Configure, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="nothing to even out"):
        clean(configure(train=write(pairs(9))), tmp_path / "out", CleanOptions(temperature=2.0))
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("value", ["0", "nan", "-1", "much"])
def test_a_temperature_that_is_none(
    value: str, write: Write, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [f"data.train={write(pairs(9))}", "-o", str(tmp_path / "out"), "--temperature", value]
    try:
        code = data.clean(words)
    except SystemExit as error:
        code = error.code
    assert code == 2
    said = capfd.readouterr().err
    assert "temperature" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("verb", ["clean", "report"])
def test_a_place_that_cannot_be_written(
    verb: str, write: Write, configure: Configure, tmp_path: Path
) -> None:
    config = configure(train=write(pairs(9), "records.jsonl"))
    blocked = Path(write(["{}"], "file"))
    made = report.build(config)
    verbs: dict[str, Callable[[Path], Any]] = {
        "clean": lambda place: clean(config, place, CleanOptions()),
        "report": lambda place: report.write(made, place),
    }
    for place in (blocked, blocked / "sub", Path("/proc/nowhere/out")):
        with pytest.raises(StorageError) as caught:
            verbs[verb](place)
        assert caught.value.problems[0].hint
    assert blocked.read_text() == "{}\n"


def test_arguments_of_calls_stay_json(write: Write, configure: Configure, tmp_path: Path) -> None:
    given = {"text": "Hi,\nanna.lind@firma.de", "card": 4111111111111111, "n": 3}
    call = {"id": "c1", "type": "function"}
    call["function"] = {"name": "mail", "arguments": json.dumps(given)}
    record = {
        "messages": [
            {"role": "user", "content": "send it"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ],
        "meta": {"id": "eva@firma.de", "type": "eva@firma.de", "role": "eva@firma.de"},
    }
    out = tmp_path / "out"
    clean(configure(train=write([record])), out, CleanOptions(redact=frozenset({"pii"})))
    (written,) = lines(out / "train.jsonl")
    made = written["messages"][1]["tool_calls"][0]
    assert made["id"] == "c1"
    wanted = {"text": "Hi,\n[EMAIL]", "card": "[CARD]", "n": 3}
    assert json.loads(made["function"]["arguments"]) == wanted
    assert set(written["meta"].values()) == {"[EMAIL]"}
    told = report.build(configure(train=str(out / "train.jsonl")))
    found = {rule["name"]: rule["count"] for rule in told["rules"]}
    assert found["broken"] == found["pii"] == 0


def test_what_cannot_be_written_again_is_left_out(
    write: Write, configure: Configure, tmp_path: Path
) -> None:
    deep = [
        f'{{"prompt": "a {n}", "completion": "b", "x": {"[" * n}{"]" * n}}}'
        for n in (10, 400, 800, 950, 980)
    ]
    out = tmp_path / "out"
    config = configure(train=write([*pairs(20), *deep]))
    told = clean(config, out, CleanOptions(redact=frozenset({"pii"})))
    dropped = lines(out / "dropped.jsonl")
    assert told["written"] + len(dropped) == 25
    assert dropped
    assert all("deep" in entry["why"] for entry in dropped)


def test_a_reason_tells_nothing_personal(
    write: Write, configure: Configure, tmp_path: Path
) -> None:
    record = {"prompt": "a", "completion": "b", "weight": "anna.lind@firma.de"}
    config = configure(train=write([*pairs(20), record]))
    clean(config, tmp_path / "out", CleanOptions())
    assert "weight" in (tmp_path / "out" / "dropped.jsonl").read_text()
    assert "anna.lind" not in (tmp_path / "out" / "dropped.jsonl").read_text()
    report.write(report.build(config), tmp_path / "report")
    for path in (tmp_path / "report").iterdir():
        assert "weight" in path.read_text()
        assert "anna.lind" not in path.read_text()


def test_a_name_that_is_no_text(write: Write, configure: Configure, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write(pairs(3), "in/b.jsonl")
    with open(os.path.join(os.fsencode(tmp_path), b"in", b"\xff.jsonl"), "w") as file:
        file.write("".join(f"{json.dumps(record)}\n" for record in pairs(4, seed=1)))
    told = clean(configure(train=str(tmp_path / "in")), tmp_path / "out", CleanOptions())
    assert sorted(path.name for path in (tmp_path / "out" / "train").iterdir()) == [
        "_.jsonl",
        "b.jsonl",
    ]
    assert told["written"] == 7


def test_numbers_that_json_has_not(write: Write, configure: Configure, tmp_path: Path) -> None:
    train = write(['{"prompt": "a", "completion": "b", "x": NaN, "y": [-Infinity, 1.5]}'])
    clean(configure(train=train), tmp_path / "out", CleanOptions())
    text = (tmp_path / "out" / "train.jsonl").read_text()
    assert json.loads(text) == {"prompt": "a", "completion": "b", "x": None, "y": [None, 1.5]}


def test_a_mixture_is_named_as_one(write: Write, configure: Configure, tmp_path: Path) -> None:
    chat = [
        {
            "messages": [
                {"role": "user", "content": record["prompt"]},
                {"role": "assistant", "content": record["completion"]},
            ]
        }
        for record in pairs(9)
    ]
    train = [
        {"path": write(pairs(20), "a.jsonl"), "weight": 2},
        {"path": write(chat, "b.jsonl"), "weight": 1},
    ]
    out = tmp_path / "o ut"
    told = clean(configure(train=train), out, CleanOptions())
    (word,) = shlex.split(naming.override(out, told["train"]))
    config = compose.compose([word, "model=tiny"], [])
    assert config.data.train == [
        {"path": f"{out}/train/a.jsonl", "weight": 2.0},
        {"path": f"{out}/train/b.jsonl", "weight": 1.0},
    ]
