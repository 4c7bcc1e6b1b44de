"""Labelled texts in the token cache, the classes that follow, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from launcher import fingerprint
from launcher.config.schema import Config, Overlong
from launcher.core.errors import ConfigError, DataError, LauncherError
from launcher.data.cache import TokenCache
from launcher.data.formats.base import Labelled
from launcher.data.pack.loader import make_row
from launcher.data.prepare.preparation import prepare
from launcher.objectives.classify.classes import Classes
from launcher.objectives.classify.encoder import TextEncoder
from launcher.objectives.classify.labels import learned
from launcher.objectives.classify.objective import Classify
from support.chats import chat

MakeData = Callable[..., Path]
TEXTS = [("buy it", "shop"), ("sell it", "shop"), ("turn left", "drive"), ("a poem", "oos")] * 3


def rows(pairs: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    return [{"text": f"{text} {i}", "label": label} for i, (text, label) in enumerate(pairs)]


@pytest.fixture
def classify(configure: Callable[..., Config]) -> Callable[..., Config]:
    def make(options: dict[str, Any] | None = None, **data: Any) -> Config:
        config = configure(objective="classify", **data)
        return replace(config, objective=replace(config.objective, **(options or {})))

    return make


def problem(config: Config) -> Any:
    with pytest.raises(LauncherError) as caught:
        prepare(config)
    return caught.value.problems[0]


def settle(config: Config, train: Any, held_out: Any) -> Classes:
    return settled(config, train, held_out).classes


def settled(config: Config, train: Any, held_out: Any) -> Classify:
    objective = Classify(config.objective)
    objective.settle(config, train, held_out)
    return objective


def opened(config: Config, split: str = "train") -> Any:
    folder = prepare(config)[split]
    assert folder
    return TokenCache.open(folder, verify=True)


def test_texts_are_tokenised_as_by_their_tokenizer(classify, make_data, make_tokenizer) -> None:
    pairs = rows(TEXTS)
    cache = opened(classify(train=make_data(pairs)))
    tokenizer = make_tokenizer()
    for i, row in enumerate(pairs):
        tokens, marks = cache.record(i)
        assert tokens.tolist() == tokenizer(row["text"])["input_ids"]
        assert marks.tolist() == [0] * (len(tokens) - 1) + [1]
        assert cache.value("label", i) == [row["label"]]


def test_rows_have_a_target_for_each_text_at_its_end(classify, make_data) -> None:
    config = classify(train=make_data(rows(TEXTS)))
    cache = opened(config)
    classes = settle(config, cache, None)
    assert classes.names == ["drive", "oos", "shop"]
    row = make_row(cache, [2, 0, 3])
    assert row.columns["label"].tolist() == [0, 2, 1]
    assert row.record_weights is None


def test_records_out_of_scope_are_held_out_and_not_learned(classify, make_data) -> None:
    data = {"train": make_data(rows(TEXTS)), "validation": make_data(rows(TEXTS), "v.jsonl")}
    config = classify({"out_of_scope": "oos"}, **data)
    train, held_out = opened(config), opened(config, "validation")
    assert (len(train), train.index.counts.dropped, len(held_out)) == (9, 3, 12)
    classes = settle(config, train, held_out)
    assert classes.names == ["drive", "shop"]
    assert make_row(held_out, [0, 3]).columns["label"].tolist() == [1, -1]
    assert classes.text(classes.usual) == "shop"


def test_one_file_for_both_splits_is_two_folders(classify, make_data) -> None:
    data = make_data(rows(TEXTS))
    config = classify({"out_of_scope": "oos"}, train=data, validation=data)
    assert (len(opened(config)), len(opened(config, "validation"))) == (9, 12)


def test_a_share_that_is_held_out_keeps_its_records_out_of_scope(classify, make_data) -> None:
    config = classify(
        {"out_of_scope": "oos"}, train=make_data(rows(TEXTS * 9)), validation_share=0.4
    )
    train, held_out = opened(config), opened(config, "validation")
    assert ["oos"] not in train.values["label"]
    assert ["oos"] in held_out.values["label"]


def test_several_labels_become_rows_of_flags(classify, make_data) -> None:
    pairs = [("both", ["b", "a", "b"]), ("none", []), ("one", "b"), ("index", [0])]
    config = classify({"multi_label": True}, train=make_data(rows(pairs)), labels=["a", "b"])
    cache = opened(config)
    settle(config, cache, None)
    flags = make_row(cache, [0, 1, 2, 3]).columns["label"]
    assert flags.tolist() == [[1, 1], [0, 0], [0, 1], [1, 0]]


def test_indices_are_names_in_their_own_order(classify, make_data) -> None:
    pairs = [(str(i), i) for i in (10, 2, 1)]
    config = classify(train=make_data(rows(pairs)))
    assert learned(config, opened(config)).names == ["1", "2", "10"]
    named = classify(train=make_data(rows([("x", 1), ("y", "0")])), labels=["no", "yes"])
    assert [opened(named).value("label", i) for i in (0, 1)] == [["yes"], ["no"]]


def test_class_weights_count_with_those_of_records(classify, make_data) -> None:
    records = [{**row, "weight": 2} for row in rows(TEXTS)]
    config = classify({"class_weights": "balanced"}, train=make_data(records))
    cache = opened(config)
    objective = settled(config, cache, None)
    # 12 records, 3 classes; 3, 3 and 6 of each.
    assert objective.classes.weights == pytest.approx([4 / 3, 4 / 3, 2 / 3])
    assert objective.weight(make_row(cache, [0])) == pytest.approx(4 / 3)
    assert objective.weight(make_row(cache, [0, 2])) == pytest.approx(4 / 3 + 8 / 3)
    given = classify({"class_weights": {"shop": 3}}, train=make_data(rows(TEXTS)))
    assert learned(given, opened(given)).weights == [1.0, 1.0, 3.0]


def test_balanced_weights_of_several_labels_are_odds(classify, make_data) -> None:
    pairs = [("x", ["a"]), ("y", ["a", "b"]), ("z", ["a"]), ("w", [])]
    options = {"multi_label": True, "class_weights": "balanced"}
    config = classify(options, train=make_data(rows(pairs)))
    assert learned(config, opened(config)).weights == pytest.approx([1 / 3, 3.0])


def test_a_long_text_is_cut_as_transformers_does(classify, make_data, make_tokenizer) -> None:
    text = "many words " * 20
    data = make_data([{"text": text, "label": "a"}, {"text": "short", "label": "b"}])
    cache = opened(classify(train=data, max_length=8))
    expected = make_tokenizer()(text, truncation=True, max_length=8)["input_ids"]
    assert cache.record(0)[0].tolist() == expected
    assert cache.index.counts.truncated == 1
    dropping = classify(train=data, max_length=8, overlong="drop", labels=["a", "b"])
    assert len(opened(dropping)) == 1


def test_all_that_closes_a_text_is_kept(tokenizer_folder) -> None:
    """mBART's texts end with the end-of-sequence token, at which they are read, and a language."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    names = {name: tokenizer.convert_tokens_to_ids(name) for name in ("<|im_end|>", "<|im_start|>")}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="$A <|im_end|> <|im_start|>", special_tokens=list(names.items())
    )
    text = "many words " * 20
    expected = tokenizer(text, truncation=True, max_length=8)["input_ids"]
    assert expected[-2:] == list(names.values())
    encoder = TextEncoder(tokenizer)
    (encoded,) = encoder.encode([Labelled(text, "a")])
    (piece,), _ = encoder.cut(encoded.pieces[0], 8, Overlong.truncate)
    assert piece[0].tolist() == expected


def test_the_folder_is_named_by_what_decides_the_labels(classify, configure, make_data) -> None:
    data = make_data(rows(TEXTS))
    configs = [
        configure(train=data),
        classify(train=data),
        classify({"multi_label": True}, train=data),
        classify({"out_of_scope": "oos"}, train=data),
        classify(train=data, labels=["shop"]),
    ]
    keys = [fingerprint.data_keys(config)["train"] for config in configs]
    assert len(set(keys)) == len(keys)
    weighted = classify({"class_weights": "balanced"}, train=data)
    assert fingerprint.data_keys(weighted)["train"] == keys[1]


@pytest.mark.parametrize(
    ("records", "found", "hint"),
    [
        (rows([("a", "x")] * 3), "all records are 'x'", "two classes"),
        (rows([("a", "x"), ("b", ["x", "y"])]), "the record has 2 labels", "multi_label=true"),
        (rows([("a", "x"), ("b", [])]), "the record has 0 labels", "multi_label=true"),
        (rows([("a", "x"), ("b", [True])]), "'label' is a truth value", "as text"),
        ([chat("a", "b")], "classify with chat data", "data.columns={text: COLUMN, label"),
    ],
)
def test_refused(classify, make_data, records, found, hint) -> None:
    said = problem(classify(train=make_data(records)))
    assert found in said.found
    assert hint in said.hint


def test_a_bad_label_is_named_by_its_line_or_skipped(classify, make_data) -> None:
    data = make_data(rows([("a", "x"), ("b", "y"), ("c", 0.5)]))
    assert problem(classify(train=data)).where.endswith("train.jsonl:3")
    skipping = classify(train=data, bad_records="skip")
    assert len(opened(skipping)) == 2


def test_a_held_out_label_that_is_no_class(classify, make_data) -> None:
    pairs = rows(TEXTS)
    held_out = make_data([*pairs, {"text": "x", "label": "shopp"}], "v.jsonl")
    said = problem(classify(train=make_data(pairs), validation=held_out))
    assert said.where.endswith("v.jsonl:13")
    assert "'shopp' is no class" in said.found
    assert "shop" in said.hint


def test_no_threshold_without_records_out_of_scope(classify, make_data) -> None:
    inside = rows([("a", "x"), ("b", "y")])
    data = {"train": make_data(inside), "validation": make_data(inside, "v.jsonl")}
    said = problem(classify({"out_of_scope": "oos"}, **data))
    assert said.where == "data.validation"
    assert "0 of 2" in said.found


def test_only_the_held_out_records_that_are_scored_can_tell_a_threshold(
    classify, make_data
) -> None:
    inside, outside = rows([("a", "x"), ("b", "y")]), rows([("c", "oos"), ("d", "oos")])
    data = {"train": make_data(inside), "validation": make_data(inside + outside, "v.jsonl")}
    config = classify({"out_of_scope": "oos"}, **data)
    train, held_out = opened(config), opened(config, "validation")
    assert settle(config, train, held_out).new_head is False
    config.eval.limit = 3
    with pytest.raises(DataError, match="1 of the first 3") as caught:
        settle(config, train, held_out)
    assert caught.value.problems[0].where == "eval.limit"
    config.objective.new_head = True
    config.eval.limit = None
    assert settle(config, train, held_out).new_head is True


def test_weights_of_a_class_that_is_not_there(classify, make_data) -> None:
    data = make_data(rows(TEXTS))
    said = problem(classify({"class_weights": {"shopping": 2}}, train=data))
    assert (said.where, "shopping" in said.found) == ("objective.class_weights", True)


def test_a_model_with_a_head_of_its_own(classify, make_data, tmp_path, tokenizer_folder) -> None:
    import json

    folder = tmp_path / "model"
    folder.mkdir()
    for file in tokenizer_folder.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())

    def head(*names: str) -> None:
        content = {
            "architectures": ["BertForSequenceClassification"],
            "id2label": dict(enumerate(names)),
        }
        (folder / "config.json").write_text(json.dumps(content))

    def config(**options: Any) -> Config:
        made = classify(options, train=make_data(rows(TEXTS)))
        made.model.name, made.model.tokenizer = str(folder), str(tokenizer_folder)
        return made

    head("shop", "oos", "drive")
    cache = opened(config())
    assert learned(config(), cache).names == ["shop", "oos", "drive"]
    head("good", "bad")
    with pytest.raises(ConfigError, match="head for 2 classes, the data has 3") as caught:
        learned(config(), cache)
    assert "objective.new_head=true" in str(caught.value)
    assert learned(config(new_head=True), cache).names == ["drive", "oos", "shop"]


def test_a_cache_of_labels_is_checked_like_its_other_files(classify, make_data) -> None:
    config = classify(train=make_data(rows(TEXTS)))
    cache = opened(config)
    assert cache.columns["label"].is_json
    path = cache.folder / "column.label.bin"
    path.write_bytes(b"\x01" + path.read_bytes()[1:])
    with pytest.raises(LauncherError, match="checksum"):
        TokenCache.open(cache.folder, verify=True)


def test_mixtures_of_labelled_sources(classify, make_data) -> None:
    first = make_data(rows([("a", "x"), ("b", "y")]), "one.jsonl")
    second = make_data(rows([("c", "y"), ("d", "z")]), "two.jsonl")
    sources = [{"path": str(first), "weight": 1}, {"path": str(second), "weight": 1}]
    config = classify(train=sources)
    cache = opened(config)
    assert settle(config, cache, None).names == ["x", "y", "z"]
    assert make_row(cache, [0, 1, 2, 3]).columns["label"].tolist() == [0, 1, 1, 2]


def test_one_label_too_few_of_a_split_is_a_data_error(classify, make_data) -> None:
    config = classify({"multi_label": True}, train=make_data(rows([("a", []), ("b", [])])))
    with pytest.raises(DataError, match="no label at all"):
        learned(config, TokenCache.open(fingerprint.cache_root(config) / _folder(config)))


def _folder(config: Config) -> str:
    with pytest.raises(DataError):
        prepare(config)
    return str(fingerprint.data_keys(config)["train"])
