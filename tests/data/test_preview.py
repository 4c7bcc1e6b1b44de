"""What `launcher plan` is told of the data is what preparation would stop at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.config.schema import Config, OnBadRecord, Overlong
from launcher.core.errors import ExitCode, LauncherError
from launcher.data import preview
from launcher.data.prepare.preparation import prepare

OUTSIDE = {"out_of_scope": "oos"}
TRAIN = ["shop", "drive", "oos"] * 25
HELD_OUT = ["shop"] * 30 + ["oos", "drive", "oos"]


def rows(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]


def weighed(labels: list[Any]) -> list[dict[str, Any]]:
    """What is out of scope counts for nothing."""
    return [{**row, "w": float(row["label"] != "oos")} for row in rows(labels)]


@pytest.fixture
def classify(configure: Callable[..., Config]) -> Callable[..., Config]:
    def make(options: dict[str, Any], limit: int | None = None, **data: Any) -> Config:
        config = configure(objective="classify", **data)
        config.eval.limit = limit
        return replace(config, objective=replace(config.objective, **options))

    return make


def foreseen(config: Config) -> tuple[list[Any], int]:
    """Problems, and exit code."""
    found = list(preview.problems(config))
    assert len({code for _, code in found}) <= 1
    return [problem for problem, _ in found], found[0][1] if found else ExitCode.ok


def met(config: Config) -> tuple[list[Any], int]:
    """The same of preparation itself."""
    try:
        prepare(config)
    except LauncherError as error:
        return list(error.problems), error.exit_code
    return [], ExitCode.ok


@pytest.mark.parametrize(
    ("options", "train", "held_out", "more", "said"),
    [
        (OUTSIDE, rows(TRAIN), rows(HELD_OUT), {}, None),
        (OUTSIDE, rows(TRAIN), rows(HELD_OUT), {"limit": 20}, "eval.limit=33 for one"),
        (OUTSIDE, rows(TRAIN), rows(HELD_OUT), {"limit": 33}, None),
        (OUTSIDE, rows(TRAIN), rows(["shop", "drive"]), {}, "0 of 2 held-out records are 'oos'"),
        (OUTSIDE, rows(TRAIN), None, {}, "0 of 0 held-out"),
        (OUTSIDE, rows(TRAIN), None, {"validation_share": 0.4}, None),
        (OUTSIDE, rows(["shop", "drive"] * 30), None, {"validation_share": 0.4}, "held-out"),
        (OUTSIDE, weighed(TRAIN), weighed(HELD_OUT), {"columns": {"weight": "w"}}, "0 of 31"),
        ({}, rows(["shop", "drive"]), rows(["shop", "dive"]), {}, "held_out.jsonl:2"),
        ({}, rows(["shop"] * 60), None, {}, "nothing to tell apart"),
        ({}, rows(TRAIN), None, {"limit_records": 1}, "nothing to tell apart"),
        ({"class_weights": {"shp": 2}}, rows(TRAIN), None, {}, "no class is called 'shp'"),
        ({}, [*rows(TRAIN), {"text": "no label"}], None, {}, "train.jsonl:76"),
        ({"multi_label": True}, rows([["shop"], [], ["drive", "shop"]]), None, {}, None),
        ({"multi_label": True}, rows([["shop"]]), rows([["dive"]]), {}, "'dive' is no class"),
    ],
)
def test_what_the_labels_tell_is_foreseen(
    classify, make_data, options, train, held_out, more, said
) -> None:
    data = {key: value for key, value in more.items() if key not in ("limit", "limit_records")}
    if held_out is not None:
        data["validation"] = make_data(held_out, "held_out.jsonl")
    config = classify(options, more.get("limit"), train=make_data(train), **data)
    config.data.limit = more.get("limit_records")
    found = foreseen(config)
    assert found == met(config)
    assert bool(found[0]) == (said is not None)
    if said:
        assert said in str(found[0][0])


PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
RATED = {**PAIR, "score_chosen": 3, "score_rejected": 1}
RANKED = {"prompt": "a", "responses": ["b", "c"], "scores": [5, 3]}
ANSWER = {"prompt": "a", "completion": "b", "label": True}


@pytest.mark.parametrize(
    ("objective", "options", "train", "said"),
    [
        ("dpo", {"margin_weight": 1.0}, [PAIR] * 3, "no pair of the training data is rated"),
        ("reward", {"margin_weight": 1.0}, [PAIR] * 3, "no pair of the training data is rated"),
        ("dpo", {"margin_weight": 1.0}, [PAIR, RATED], None),
        ("reward", {"margin_weight": 1.0}, [RANKED, RANKED], None),
        ("dpo", {}, [PAIR] * 3, None),
        ("orpo", {}, [PAIR] * 3, None),
        ("kto", {}, [ANSWER] * 3, "all 3 answers are good"),
        ("kto", {}, [{**ANSWER, "label": "bad"}] * 3, "all 3 answers are bad"),
        ("kto", {}, [ANSWER, {**ANSWER, "label": False}], None),
        ("kto", {}, [PAIR], None),
    ],
)
def test_what_the_answers_tell_is_foreseen(
    configure: Callable[..., Config], make_data, objective, options, train, said
) -> None:
    config = configure(objective=objective, train=make_data(train))
    config = replace(config, objective=replace(config.objective, **options))
    found = foreseen(config)
    assert found == met(config)
    assert [said in problem.found for problem in found[0]] == [True] * bool(said)


def test_several_files_are_read_as_preparation_reads_them(classify, make_data) -> None:
    paths = [str(make_data(rows([name] * 9), f"{name}.jsonl")) for name in ("shop", "oos")]
    for train in (paths, [{"path": path} for path in paths]):
        config = classify({}, train=train, validation=make_data(rows(["oos", "shop"]), "v.jsonl"))
        assert foreseen(config) == met(config) == ([], ExitCode.ok)


@pytest.mark.parametrize("changes", [{"bad_records": "skip"}, {"overlong": "drop"}])
def test_records_that_may_be_left_out_are_not_judged(classify, make_data, changes) -> None:
    kinds = {"bad_records": OnBadRecord, "overlong": Overlong}
    config = classify({}, train=make_data(rows(["shop"] * 3)))
    for key, value in changes.items():
        setattr(config.data, key, kinds[key][value])
    assert foreseen(config) == ([], ExitCode.ok)


def test_large_files_and_what_no_objective_asks_for_are_not_read_whole(
    configure: Callable[..., Config], classify, make_data, monkeypatch
) -> None:
    train: Path = make_data(rows(["shop"] * 60))
    monkeypatch.setattr(preview, "WHOLE_BYTES", 100)
    assert foreseen(classify({}, train=train)) == ([], ExitCode.ok)
    pairs = make_data([{"prompt": "a", "completion": "b"}] * 60 + [{"prompt": "a"}], "p.jsonl")
    monkeypatch.setattr(preview, "WHOLE_BYTES", 1 << 20)
    assert foreseen(configure(train=pairs)) == ([], ExitCode.ok)
