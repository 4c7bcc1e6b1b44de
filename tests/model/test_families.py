"""Architectures of every kind compute under the launcher what they compute in plain transformers.

`python tests/bench/families.py` goes through all of them; here is one of each kind.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.draws import some
from support.families import VARIANTS, architectures, make_family
from support.family_checks import (
    LENGTHS,
    Different,
    check_family,
    check_gradients,
    check_loss,
    check_sense,
    move,
    run,
    start,
    subject,
)

ROOT = Path(__file__).resolve().parents[2]
PACKED = ["data.packing=true"]
ALL = [list(range(len(LENGTHS)))]

#: One of a kind: grouped and windowed heads, fused experts, compressed keys, sinks, chunks, layers
#: that share keys, and state outside of attention (delta rule, Mamba 1 and 2, convolutions).
KINDS = (
    "mistral",
    "qwen3_moe",
    "deepseek_v3",
    "gpt_oss",
    "llama4_text",
    "gemma4_text, shared keys",
    "qwen3_5_text",
    "jamba",
    "falcon_h1",
    "lfm2",
)


@pytest.mark.parametrize("name", some(KINDS, "mistral"))
def test_a_packed_row_gets_what_each_document_gets_alone(tmp_path: Path, name: str) -> None:
    one = subject(make_family(name, tmp_path / "base"), tmp_path, "causal")
    check_sense(one)
    began = start(one, PACKED)
    check_loss(one, began, ALL)
    check_gradients(one, began, ALL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("qwen3_moe", "causal"),
        ("qwen3_5_text", "causal"),
        ("falcon_h1", "causal"),
        ("gpt_oss", "causal"),
        ("gemma4_text, experts", "causal"),
        ("llama4_text", "causal"),
        ("qwen3", "classes"),
        ("modernbert", "classes"),
        ("fnet", "classes"),  # by length, as padding would change its losses
        ("bart", "classes"),  # read at the end-of-sequence token
    ],
)
def test_all_that_is_done_with_a_model_equals_plain_transformers(
    tmp_path: Path, name: str, head: str
) -> None:
    one = subject(make_family(name, tmp_path / "base", head), tmp_path, head)
    outcomes = list(check_family(one))
    assert not [found for found in outcomes if found.outcome != "equal"]
    assert len(outcomes) > 10


def test_a_model_that_sees_later_tokens_is_refused(tmp_path: Path) -> None:
    one = subject(make_family("bert, bidirectional", tmp_path / "base"), tmp_path, "causal")
    assert run("", check_sense, one).outcome == "not causal"
    for words in (PACKED, ["data.packing=false"], ["data.packing=false", "model.attention=sdpa"]):
        found = run("", start, one, words)
        assert found.outcome == "refused", found


def test_other_weights_are_noticed(tmp_path: Path) -> None:
    one = subject(make_family("llama", tmp_path / "base"), tmp_path, "causal")
    began = start(one, PACKED)
    check_loss(one, began, ALL)
    move(began.model)
    with pytest.raises(Different, match="loss of a target"):
        check_loss(one, began, ALL)
    with pytest.raises(Different):
        check_gradients(one, began, ALL)


@pytest.mark.slow
def test_no_architecture_of_transformers_is_left_out() -> None:
    from transformers.models.auto import modeling_auto

    known = {
        *modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    }
    found = architectures()
    names = {name for one in found.values() for name in (one.name, *one.aliases)}
    assert names - set(VARIANTS) == known
    assert all(kind in known for kind, _ in VARIANTS.values())


def results() -> dict[str, dict[str, str]]:
    """Heading of each table of results -> architecture -> in a word, what came of packed rows."""
    found: dict[str, dict[str, str]] = {}
    for part in (ROOT / "tests" / "bench" / "families.md").read_text("utf-8").split("\n## ")[1:]:
        rows = re.findall(r"^\| `(.+?)` \| (yes|padded|refused|no|equal)\b", part, re.M)
        found[part.partition("\n")[0]] = dict(rows)
    return found


@pytest.mark.slow
def test_the_table_of_results_has_every_architecture() -> None:
    texts = [one for one in architectures().values() if {"causal", "classes"} & set(one.heads)]
    known = {name for table in results().values() for name in table}
    assert not [one.name for one in texts if one.name not in known]


@pytest.mark.parametrize(
    ("heading", "table"),
    [
        ("language models", "Language models"),
        ("[classifiers](classify.md)", "Classifiers"),
        ("models of images and texts", "Models of images and texts"),
    ],
)
def test_the_documentation_lists_what_the_results_say(heading: str, table: str) -> None:
    page = (ROOT / "docs" / "models.md").read_text("utf-8")
    part = page.partition(f"| {heading} |")[2].partition("\n\n")[0]
    said = dict(re.findall(r"^\| ([a-z ]+) \| (.*) \|$", part, re.M))
    words = {"packed": "yes", "padded": "padded", "refused": "refused", "not tested": "no"}
    of = {
        word: {name for name, outcome in results()[table].items() if outcome == words[word]}
        for word in words
    }
    (others,) = [word for word, names in said.items() if names.startswith("all others")]
    named = {word: set(re.findall(r"`(.+?)`", names)) for word, names in said.items()}
    assert named == {word: of[word] for word in said} | {others: set()}
    assert not any(of[word] for word in set(words) - set(said))
    if table == "Classifiers":
        return
    presets = page.partition("## Presets")[2].partition("## ")[0]
    for preset in re.findall(r"`(\w+)`", presets):
        assert results()[table].get(preset, "yes") == "yes"
