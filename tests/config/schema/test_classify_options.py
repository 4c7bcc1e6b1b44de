"""Every rule of a classifier's config: what breaks it, and the nearest that does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.config.check import checks
from launcher.config.derive import plan
from launcher.config.schema import Config
from support import hints
from support.configs import make_config

CLASSES = ["loss", "accuracy"]
OOS = {"out_of_scope": "oos"}


def config_of(changes: dict[str, dict[str, Any]]) -> Config:
    base: dict[str, dict[str, Any]] = {
        "model": {"kind": "tiny"},
        "data": {"train": "train.jsonl", "max_length": 64},
        "objective": {"name": "classify"},
        "batch": {"sequences": 8},
        "train": {"steps": 10},
        "eval": {"metrics": CLASSES},
    }
    for name, values in changes.items():
        base[name] = {**base[name], **values}
    return make_config(**base)


def problems(changes: dict[str, dict[str, Any]]) -> list[Any]:
    return checks.check(config_of(changes), world_size=2, has_gpu=False)


def metrics(*names: str) -> dict[str, list[str]]:
    return {"metrics": list(names)}


#: where, words of finding and hint, sections that break the rule and that keep it
RULES: list[tuple[str, str, str, dict[str, Any], dict[str, Any]]] = [
    (
        "eval.metrics",
        "accuracy with objective=sft",
        "objective=classify",
        {"objective": {"name": "sft"}},
        {"objective": {"name": "sft"}, "eval": metrics("loss")},
    ),
    ("eval.metrics", "bleu with", "eval=default", {"eval": metrics("bleu")}, {}),
    ("eval.metrics", "perplexity with", "f1_macro", {"eval": metrics("perplexity")}, {}),
    (
        "eval.metrics",
        "auroc without",
        "out_of_scope=oos",
        {"eval": metrics("auroc")},
        {"eval": metrics("auroc"), "objective": OOS},
    ),
    (
        "eval.metrics",
        "ece with objective.multi_label",
        "leave ece out",
        {"eval": metrics("ece"), "objective": {"multi_label": True}},
        {"eval": metrics("ece")},
    ),
    (
        "objective.out_of_scope",
        "multi_label",
        "empty list",
        {"objective": {"multi_label": True, **OOS}},
        {"objective": {"multi_label": True}},
    ),
    (
        "objective.out_of_scope",
        "eval=none",
        "eval=default",
        {"objective": OOS, "eval": {"name": "none", "metrics": []}},
        {"eval": {"name": "none", "metrics": []}},
    ),
    (
        "objective.class_weights",
        "no weights",
        "balanced",
        {"objective": {"class_weights": "even"}},
        {"objective": {"class_weights": "balanced"}},
    ),
    (
        "objective.class_weights",
        "no weights",
        "above 0",
        {"objective": {"class_weights": {"a": 0}}},
        {"objective": {"class_weights": {"a": 0.5}}},
    ),
    (
        "objective.name",
        "with data.format=chat",
        "data=classification",
        {"data": {"format": "chat"}},
        {"data": {"format": "own.py"}},
    ),
    ("data.system", "system message", "text alone", {"data": {"system": "x"}}, {}),
    (
        "train.token_accuracy",
        "true with",
        "train.token_accuracy=false",
        {"train": {"steps": 1, "token_accuracy": True}},
        {},
    ),
    (
        "data.overlong",
        "split with",
        "truncate",
        {"data": {"overlong": "split"}},
        {"data": {"overlong": "drop"}},
    ),
    (
        "data.special_tokens",
        "text with",
        "auto",
        {"data": {"special_tokens": "text"}},
        {"data": {"special_tokens": "parse"}},
    ),
]


@pytest.mark.parametrize(("where", "found", "hint", "bad", "good"), RULES)
def test_rule(where: str, found: str, hint: str, bad: dict[str, Any], good: dict[str, Any]) -> None:
    (broken,) = [p for p in problems(bad) if p.where == where and found in p.found]
    assert hint in broken.hint
    assert problems(good) == []


@pytest.mark.parametrize(("where", "found", "hint", "bad", "good"), RULES)
def test_what_a_hint_says_to_type_mends_what_gave_it(
    where: str,
    found: str,
    hint: str,
    bad: dict[str, Any],
    good: dict[str, Any],
    tmp_path: Path,
) -> None:
    file = tmp_path / "own.yaml"
    hints.require_mended(config_of(bad), file, world_size=2, has_gpu=False)


def test_an_encoder_is_known_by_its_config_and_not_packed(tmp_path) -> None:
    def model(architecture: str, **options: Any) -> dict[str, Any]:
        (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
        return {"kind": "hf", "name": str(tmp_path), **options}

    encoder = {"model": model("BertForMaskedLM")}
    (broken,) = problems(encoder)
    assert broken.where == "data.packing"
    assert "data.packing=false" in broken.hint
    unpacked = encoder | {"data": {"packing": False}}
    assert problems(unpacked) == []
    made = plan.make(config_of(unpacked), world_size=2, has_gpu=False)
    assert made.attention == "sdpa"
    named = unpacked | {"model": model("BertForMaskedLM", attention="document")}
    assert [p.where for p in problems(named)] == ["model.attention"]
    decoder = {"model": model("LlamaForCausalLM")}
    assert problems(decoder) == []
    assert plan.make(config_of(decoder), world_size=2, has_gpu=False).attention == "document"
    sees = {"architectures": ["Gemma3ForConditionalGeneration"], "text_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(sees))
    assert problems(decoder) == []
