"""What `launcher plan` is told of adapters, from the model's structure alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher.model import preview
from support.configs import make_config

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
BERT = {**LLAMA, "model_type": "bert", "architectures": ["BertForMaskedLM"]}


def told(folder: Path, content: dict[str, Any], objective: str = "sft", **peft: Any) -> list[str]:
    """The problems of a model of which there is only the config.json."""
    (folder / "config.json").write_text(json.dumps(content))
    config = make_config(
        model={"name": str(folder)}, peft={"name": "lora", **peft}, objective={"name": objective}
    )
    return [f"{one.where}: {one.found}" for one in preview.problems(config)]


@pytest.mark.parametrize(
    ("peft", "expected"),
    [
        ({}, []),
        ({"targets": ["q_proj", "mlp.down_proj"], "modules_to_save": ["norm"]}, []),
        ({"targets": ["1.self_attn.q_proj"]}, []),
        (
            {"targets": ["q_proj", "nope"], "modules_to_save": ["head"]},
            [
                "peft.targets: the model has no module named 'nope'",
                "peft.modules_to_save: the model has no module named 'head'",
            ],
        ),
        ({"targets": ["norm"]}, ["peft.targets: no layer of LlamaForCausalLM is adapted"]),
    ],
)
def test_names_are_looked_up_in_the_structure(
    tmp_path: Path, peft: dict[str, Any], expected: list[str]
) -> None:
    assert told(tmp_path, LLAMA, **peft) == expected


def test_a_classifiers_head_is_none_of_the_layers(tmp_path: Path) -> None:
    assert told(tmp_path, BERT, "classify", targets=["query"]) == []
    assert told(tmp_path, BERT, "classify", targets=["q_proj"]) == [
        "peft.targets: the model has no module named 'q_proj'"
    ]
    assert told(tmp_path, LLAMA, "classify", targets=["score"]) == [
        "peft.targets: no layer of LlamaForSequenceClassification is adapted"
    ]


def test_a_tiny_model_has_a_structure_without_its_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path))
    tiny = {"kind": "tiny", "recipe": "quickstart-base", "layers": 1, "hidden_size": 32}
    config = make_config(model=tiny, peft={"name": "lora", "targets": ["nope"]})
    assert [one.where for one in preview.problems(config)] == ["peft.targets"]


def test_what_only_loading_can_tell_is_left_to_it(tmp_path: Path) -> None:
    assert told(tmp_path, {**LLAMA, "model_type": "nobody-knows-it"}, targets=["nope"]) == []
    config = make_config(model={"name": "not/here"}, peft={"name": "lora", "targets": ["nope"]})
    assert list(preview.problems(config)) == []
