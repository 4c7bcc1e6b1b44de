"""A teacher that is not there, is no model or has other tokens is found before anything starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from launcher import fingerprint
from launcher.config.check import checks
from launcher.config.derive import peak, plan, vocabulary
from support import hints
from support.configs import make_config

CONTENT = {
    "model_type": "llama",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def model(folder: Path, tokens: dict[str, int], **added: int) -> Path:
    """What is read of a model and its tokenizer without loading either."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONTENT))
    special = [{"id": number, "content": token} for token, number in added.items()]
    content = {"model": {"type": "BPE", "vocab": tokens}, "added_tokens": special}
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return folder


def problems(folder: Path, objective: dict[str, Any], **changes: dict[str, Any]) -> list[Any]:
    sections: dict[str, dict[str, Any]] = {
        "model": {"name": str(folder / "student")},
        "data": {"train": "train.jsonl", "max_length": 64},
        "objective": {"name": "distill", "teacher": str(folder / "teacher"), **objective},
        "batch": {"sequences": 8},
        "train": {"steps": 10},
    }
    for name, values in changes.items():
        sections[name] = {**sections[name], **values}
    return checks.check(make_config(**sections), world_size=2, has_gpu=False)


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with a student and a teacher that goes with it."""
    model(tmp_path / "student", {"a": 0, "b": 1}, end=2)
    model(tmp_path / "teacher", {"b": 1, "a": 0}, end=2)
    return tmp_path


def test_a_teacher_with_the_same_tokens_goes(here: Path) -> None:
    assert problems(here, {}) == []
    assert problems(here, {"teacher": "somebody/at-the-hub"}) == []
    assert problems(here, {"top_k": 16, "divergence": "jsd", "beta": 0.1}) == []


@pytest.mark.parametrize(
    ("tokens", "added", "found"),
    [
        ({"a": 1, "b": 0}, {"end": 2}, "3 tokens with 'a' as number 0, and 3 tokens with 'a' as"),
        ({"a": 0, "b": 1}, {"stop": 2}, "3 tokens with 'end' as number 2, and 3 tokens, no 'end'"),
        ({"a": 0, "b": 1, "c": 3}, {"end": 2}, "3 tokens, no 'c', and 4 tokens with 'c' as"),
    ],
)
def test_other_tokens_are_refused(
    here: Path, tokens: dict[str, int], added: dict[str, int], found: str
) -> None:
    model(here / "other", tokens, **added)
    (broken,) = problems(here, {"teacher": str(here / "other")})
    assert broken.where == "objective.teacher"
    assert f"{here / 'other'} has another tokenizer than the model" in broken.found
    assert found in broken.found
    assert "objective.teacher=FOLDER" in broken.hint


def test_added_tokens_are_tokens_too(here: Path) -> None:
    (broken,) = problems(here, {}, model={"add_tokens": ["new"]})
    assert "4 tokens with 'new' as number 3" in broken.found
    model(here / "grown", {"a": 0, "b": 1}, end=2, new=3)
    assert problems(here, {"teacher": str(here / "grown")}, model={"add_tokens": ["new"]}) == []


def test_a_tokenizer_beside_the_model_counts(here: Path) -> None:
    model(here / "own", {"a": 0}, end=1)
    (broken,) = problems(here, {}, model={"tokenizer": str(here / "own")})
    assert "2 tokens, no 'b'" in broken.found


def test_scored_pieces_are_numbered_in_their_order(tmp_path: Path) -> None:
    content = {"model": {"vocab": [["x", 0.0], ["y", -1.5]]}, "added_tokens": []}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert vocabulary.read(tmp_path) == {"x": 0, "y": 1}
    (tmp_path / "tokenizer.json").write_text("[]")
    assert vocabulary.read(tmp_path) is None


def test_what_is_no_model_is_refused(here: Path) -> None:
    gone = here / "gone"
    (broken,) = problems(here, {"teacher": str(gone)})
    assert (broken.where, broken.found) == ("objective.teacher", f"there is no folder {gone}")
    gone.mkdir()
    (broken,) = problems(here, {"teacher": str(gone)})
    assert broken.found == f"{gone} has no config.json"
    (gone / "adapter_config.json").write_text("{}")
    (broken,) = problems(here, {"teacher": str(gone)})
    assert broken.found == f"{gone} is an adapter"
    assert "merge" in broken.hint
    (broken,) = problems(here, {"teacher": None})
    assert broken.found == "no teacher is given"
    assert "objective.teacher=FOLDER" in broken.hint


@pytest.mark.parametrize(
    ("where", "found", "objective", "changes"),
    [
        ("objective.beta", "0.3 with objective.divergence=forward", {"beta": 0.3}, {}),
        (
            "objective.beta",
            "0.3 with objective.divergence=reverse",
            {"beta": 0.3, "divergence": "reverse"},
            {},
        ),
        ("data.format", "text with objective=distill", {}, {"data": {"format": "text"}}),
        (
            "data.overlong",
            "cut_prompt with objective.all_tokens=true",
            {"all_tokens": True},
            {"data": {"overlong": "cut_prompt"}},
        ),
    ],
)
def test_options_that_do_not_fit(
    here: Path, where: str, found: str, objective: dict[str, Any], changes: dict[str, Any]
) -> None:
    (broken,) = problems(here, objective, **changes)
    assert (broken.where, broken.found) == (where, found)
    config = make_config(
        model={"name": str(here / "student")},
        data={"train": "train.jsonl", "max_length": 64, **changes.get("data", {})},
        objective={"name": "distill", "teacher": str(here / "teacher"), **objective},
        batch={"sequences": 8},
        train={"steps": 10},
    )
    hints.require_mended(config, here / "own.yaml", world_size=2, has_gpu=False)


def test_the_plan_counts_a_teacher_that_runs_beside(here: Path) -> None:
    def planned(**objective: Any) -> tuple[plan.Plan, str]:
        config = make_config(
            model={"name": str(here / "student")},
            data={"train": "train.jsonl", "max_length": 64},
            objective={"name": "distill", "teacher": str(here / "teacher"), **objective},
            batch={"sequences": 8},
            train={"steps": 10},
        )
        made = plan.make(config, world_size=2, has_gpu=False)
        assert peak.beside(config, "bf16") == peak.beside(config, "fp32") // 2
        return made, plan.describe(config, made)

    beside, told = planned()
    cached, otherwise = planned(top_k=8)
    assert beside.memory is not None
    assert cached.memory is not None
    each = 4 * (beside.parameters or 0)  # the teacher is as large, in fp32
    assert beside.memory["weights"] - cached.memory["weights"] == each > 0
    assert f"teacher  {here / 'teacher'} ({beside.parameters:,} parameters), fp32, " in told
    assert f"teacher  {here / 'teacher'}, asked once before the first step" in otherwise


def test_a_prepared_set_is_shared_with_plain_fine_tuning(here: Path) -> None:
    (here / "train.jsonl").write_text('{"text": "a b"}\n')

    def keys(name: str, **objective: Any) -> dict[str, str | None]:
        config = make_config(
            model={"name": str(here / "student")},
            data={"train": str(here / "train.jsonl"), "cache": str(here / "cache")},
            objective={"name": name, **objective},
        )
        return fingerprint.data_keys(config)

    answers, everything = keys("distill"), keys("distill", all_tokens=True)
    assert answers == keys("sft")
    assert everything == keys("text")
    assert answers["train"] != everything["train"]
