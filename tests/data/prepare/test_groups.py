"""Records of several documents, and columns beside the tokens: from pieces to rows."""

from __future__ import annotations

import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.schema import Overlong
from launcher.core.errors import ConfigError, StorageError
from launcher.data.cache import Column, Index, Per, TokenCache
from launcher.data.pack.loader import make_row, rectangles
from launcher.data.prepare.encoding import Piece, cut, cut_prompt, shorten
from launcher.data.prepare.writing import CacheWriter

COLUMNS = (
    Column("reference"),
    Column("advantage", Per.target),
    Column("top", Per.target, "int64", width=2),
    Column("kind", dtype="json"),
)

#: A document: whether each token is learned.
DOCUMENT = st.lists(st.booleans(), min_size=2, max_size=9)
RECORDS = st.lists(st.lists(DOCUMENT, min_size=1, max_size=3), min_size=1, max_size=8)


def piece_of(number: int, documents: list[list[bool]]) -> Piece:
    flags = [flag for own in documents for flag in own]
    counts = [sum(own[1:]) for own in documents]
    places = [100 * number + i for i in range(sum(counts))]
    return Piece(
        np.arange(len(flags), dtype=np.int32) + 1000 * number,
        np.array(flags, np.uint8),
        tuple(map(len, documents)) if len(documents) > 1 else (),
        {
            "reference": [number + i / 10 for i in range(len(documents))],
            "advantage": np.array(places, np.float32),
            "top": np.array([[p, p + 1] for p in places], np.int64).reshape(-1, 2),
            "kind": [
                {"name": "odd" if (number + i) % 2 else "even"} for i in range(len(documents))
            ],
        },
    )


def append(writer: CacheWriter, first: int, pieces: list[Piece]) -> None:
    def joined(name: str) -> Any:
        values = [piece.columns[name] for piece in pieces]
        if isinstance(values[0], np.ndarray):
            return np.concatenate(values)
        return [value for own in values for value in own]

    writer.append(
        np.concatenate([piece.tokens for piece in pieces]),
        np.concatenate([piece.targets for piece in pieces]),
        np.array([len(piece.tokens) for piece in pieces], np.int32),
        np.array([[0, first + i] for i in range(len(pieces))], np.int32),
        np.ones(len(pieces), np.float32),
        documents=[piece.lengths for piece in pieces],
        columns={column.name: joined(column.name) for column in COLUMNS},
    )


def index() -> Index:
    return Index(key="", files=["f"], format="x", tokenizer="", max_length=64)


def written(folder: Path, records: list[list[list[bool]]]) -> TokenCache:
    with CacheWriter(folder, columns=COLUMNS, grouped=True) as writer:
        for number, documents in enumerate(records):
            append(writer, number, [piece_of(number, documents)])
        writer.finish(index())
    cache = TokenCache.open(folder, verify=True)
    assert isinstance(cache, TokenCache)
    cache.give("kind", np.arange(len(cache.values["kind"])))
    return cache


def check(row: Any, records: list[list[list[bool]]]) -> None:
    """Every document, target and column of a row is that of its record."""
    starts = row.document_starts.tolist()
    spans = iter(pairwise(starts))
    targets, documents = 0, 0
    for number, size in zip(row.records, row.sizes, strict=True):
        piece = piece_of(number, records[number])
        lengths = piece.lengths or (len(piece.tokens),)
        assert size == len(lengths)
        tokens = [row.input_ids[slice(*next(spans))].tolist() for _ in range(size)]
        assert [len(own) for own in tokens] == list(lengths)
        assert sum(tokens, []) == piece.tokens.tolist()
        count = len(piece.columns["advantage"])
        own = slice(targets, targets + count)
        assert row.columns["advantage"][own].tolist() == piece.columns["advantage"].tolist()
        assert row.columns["top"][own].tolist() == piece.columns["top"].tolist()
        found = row.columns["reference"][documents : documents + size]
        torch.testing.assert_close(found, torch.tensor(piece.columns["reference"]))
        of = row.document_of_targets()[own].tolist()
        expected = [d for d, own in enumerate(records[number]) for flag in own[1:] if flag]
        assert [d - documents for d in of] == expected
        targets, documents = targets + count, documents + size
    assert targets == len(row.targets) == len(row.columns["advantage"])
    assert torch.equal(row.targets, row.input_ids[row.target_index + 1])


@pytest.mark.thorough
@settings(deadline=None, max_examples=40)
@given(RECORDS, st.data())
def test_rows_hold_documents_and_columns_of_their_records(records, data) -> None:
    chosen = data.draw(st.lists(st.integers(0, len(records) - 1), min_size=1, max_size=6))
    with tempfile.TemporaryDirectory() as folder:
        cache = written(Path(folder) / "cache", records)
        row = make_row(cache, chosen)
        check(row, records)
        for part in rectangles(row):
            check(part, records)
            assert (len(part.document_starts) - 1) * part.longest <= max(
                len(row.input_ids), max(part.sizes) * part.longest
            )
        assert sorted(r for part in rectangles(row) for r in part.records) == sorted(chosen)
        kinds = [cache.value("kind", i) for i in range(len(records))]
    assert kinds == [{"name": "odd" if i % 2 else "even"} for i in range(len(records))]


def test_documents_of_one_record_are_never_torn_apart(tmp_path) -> None:
    cache = written(tmp_path, [[[True] * 4, [True] * 4], [[True] * 6, [True] * 4]])
    assert [part.sizes for part in rectangles(make_row(cache, [0]), equal=True)] == [[2]]
    with pytest.raises(ConfigError, match="documents of one record"):
        rectangles(make_row(cache, [1]), equal=True)


def test_a_json_column_comes_as_what_it_is_given_to_be(tmp_path) -> None:
    cache = written(tmp_path, [[[True, True]], [[True, True], [True, True]], [[True, True]]])
    places = {str(value): i for i, value in enumerate(cache.values["kind"])}
    meanings = np.zeros((2, 3), np.float32)
    meanings[places["{'name': 'odd'}"]] = 1
    cache.give("kind", meanings)
    found = make_row(cache, [1, 2]).columns["kind"]
    assert found.tolist() == [[1] * 3, [0] * 3, [0] * 3]
    assert cache.count("kind") == [3, 1] if cache.values["kind"][0]["name"] == "even" else [1, 3]
    assert cache.first("kind", places["{'name': 'odd'}"]) == 1


def test_columns_are_taken_up_where_a_process_was_killed(tmp_path) -> None:
    records = [[[True, True, False]], [[True] * 3, [False, True]], [[True, True]]]
    whole = written(tmp_path / "whole", records)
    stamp = {"key": "k"}
    writer = CacheWriter(tmp_path / "parts", stamp, columns=COLUMNS, grouped=True)
    append(writer, 0, [piece_of(0, records[0]), piece_of(1, records[1])])
    writer.commit([0, 1, 0], {})
    append(writer, 2, [piece_of(2, records[2])])
    writer.close()  # killed: what came after the last commit does not count
    again = CacheWriter(tmp_path / "parts", stamp, columns=COLUMNS, grouped=True)
    assert again.cursors == [[0, 1, 0]]
    again.resume(1)
    append(again, 2, [piece_of(2, records[2])])
    again.finish(index())
    made = TokenCache.open(tmp_path / "parts", verify=True)
    assert made.index.checksums == whole.index.checksums
    assert made.index.columns == whole.index.columns


def test_what_is_no_json_column_is_refused(tmp_path) -> None:
    for wrong in ({"per": Per.target}, {"width": 2}):
        with pytest.raises(ValueError, match="a json value is of a document, and one"):
            Column("kind", dtype="json", **wrong)
    written(tmp_path, [[[True, True]]])
    again = TokenCache.open(tmp_path)
    with pytest.raises(ValueError, match="`give` says what they are in a row"):
        make_row(again, [0])


def test_documents_that_belong_together_are_cut_by_their_own_encoder() -> None:
    piece = piece_of(0, [[True] * 6, [True] * 6])
    with pytest.raises(TypeError, match="has a `cut`"):
        cut(piece, 8, Overlong.truncate)
    assert cut(piece, 8, Overlong.drop) == ([], Overlong.drop)


def test_several_documents_are_no_record_of_a_cache_that_is_not_grouped(tmp_path) -> None:
    with CacheWriter(tmp_path) as writer, pytest.raises(ValueError, match="not grouped"):
        writer.append(
            np.zeros(4, np.int32),
            np.ones(4, np.uint8),
            np.array([4], np.int32),
            np.array([[0, 1]], np.int32),
            np.ones(1, np.float32),
            documents=[(2, 2)],
        )


def test_damage_of_a_column_is_noticed(tmp_path) -> None:
    written(tmp_path, [[[True, True]]])
    path = tmp_path / "column.advantage.bin"
    path.write_bytes(path.read_bytes() + b"    ")
    with pytest.raises(StorageError, match=r"column\.advantage\.bin"):
        TokenCache.open(tmp_path)


def test_a_column_has_a_value_for_each(tmp_path) -> None:
    piece = piece_of(0, [[True, True, True]])
    short = piece._replace(columns={**piece.columns, "advantage": np.zeros(1, np.float32)})
    with (
        CacheWriter(tmp_path, columns=COLUMNS, grouped=True) as writer,
        pytest.raises(ValueError, match="advantage has 1 numbers, not 1 for each of 2"),
    ):
        append(writer, 0, [short])


@settings(deadline=None)
@given(st.lists(DOCUMENT, min_size=1, max_size=3), st.integers(2, 30))
def test_shortened_documents_keep_their_beginnings(documents, most) -> None:
    piece = piece_of(1, documents)
    kept = shorten(piece, most, ("advantage", "top"))
    if kept is None:
        return
    lengths = kept.lengths or (len(kept.tokens),)
    full = piece.lengths or (len(piece.tokens),)
    assert sum(lengths) <= most
    assert len(lengths) == len(full)
    # None is cut while a longer one stays whole, and no token more than needed is lost, but for
    # what does not divide evenly.
    cut = [new for new, old in zip(lengths, full, strict=True) if new < old]
    assert all(new == max(lengths) for new in cut)
    assert sum(lengths) == sum(full) or sum(lengths) > most - len(full)
    begin = place = 0
    for start, new, own in zip(piece.starts, lengths, documents, strict=True):
        assert (
            kept.tokens[begin : begin + new].tolist() == piece.tokens[start : start + new].tolist()
        )
        count = sum(own[1:new])
        before = sum(sum(d[1:]) for d in documents[: documents.index(own)])
        if documents.count(own) == 1:
            found = kept.columns["advantage"][place : place + count].tolist()
            assert found == piece.columns["advantage"][before : before + count].tolist()
        begin, place = begin + new, place + count
    assert len(kept.columns["advantage"]) == place == len(kept.columns["top"])
    assert kept.columns["reference"] == piece.columns["reference"]


def piece_with(prompts: list[int], answers: list[int]) -> Piece:
    """Documents of a prompt and an answer, all tokens different but the first: 0."""
    tokens, targets = [], []
    for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        own = [0, *range(100 * number + 1, 100 * number + prompt + answer)]
        tokens += own
        targets += [0] * prompt + [1] * answer
    lengths = tuple(p + a for p, a in zip(prompts, answers, strict=True))
    columns = {"reference": list(map(float, range(len(lengths))))}
    return Piece(
        np.array(tokens, np.int32),
        np.array(targets, np.uint8),
        lengths if len(lengths) > 1 else (),
        columns,
    )


SIZES = st.lists(st.tuples(st.integers(1, 12), st.integers(1, 8)), min_size=1, max_size=3).map(
    lambda sizes: tuple(map(list, zip(*sizes, strict=True)))
)


@given(SIZES, st.integers(2, 40), st.sampled_from([None, 0]))
def test_a_cut_prompt_leaves_answers_whole(sizes, max_length, opening) -> None:
    prompts, answers = sizes
    piece = piece_with(prompts, answers)
    made, deed = cut_prompt(piece, max_length, opening)
    if len(piece.tokens) <= max_length:
        assert (made, deed) == ([piece], None)
        return
    if sum(answers) + len(answers) > max_length:
        assert (made, deed) == ([], Overlong.drop)
        return
    ((tokens, targets, lengths, columns),) = made
    assert deed is Overlong.cut_prompt
    assert columns is piece.columns
    assert len(tokens) <= max_length
    assert tokens[targets == 1].tolist() == piece.tokens[piece.targets == 1].tolist()
    before, after = 0, 0
    kept = []
    for prompt, answer, length in zip(prompts, answers, lengths or (len(tokens),), strict=True):
        own = tokens[after : after + length].tolist()
        whole = piece.tokens[before : before + prompt + answer].tolist()
        kept.append(length - answer)
        assert kept[-1] >= 1
        if kept[-1] < prompt and opening == 0:
            assert own == [0, *whole[prompt - kept[-1] + 1 :]]
        else:
            assert own == whole[prompt - kept[-1] :]
        before, after = before + prompt + answer, after + length
    # The longest prompts are cut alike, and no further than needed.
    most = max(kept)
    assert kept == [min(prompt, most) for prompt in prompts]
    assert sum(min(prompt, most + 1) for prompt in prompts) + sum(answers) > max_length
