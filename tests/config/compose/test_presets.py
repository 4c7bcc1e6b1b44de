"""The presets of models: each is documented, and of a kind that transformers knows."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from transformers.models.auto import modeling_auto

from launcher.config.compose import groups
from launcher.core import runtime

PAGE = Path(__file__).resolve().parents[3] / "docs" / "models.md"


def rows() -> list[list[str]]:
    """Cells of the table of presets: family, presets, model types."""
    table = PAGE.read_text("utf-8").partition("## Presets")[2].partition("## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_page_names_every_preset_once() -> None:
    named = [name for row in rows() for name in re.findall(r"[a-z0-9.-]*\d[a-z0-9.-]*", row[1])]
    named = [name for name in named if "-" in name or name[-1].isdigit()]
    presets = [name for name in groups.list_groups()["model"] if name not in ("hf", "tiny")]
    assert sorted(name for name in named if name != "2") == sorted(presets)


def test_transformers_has_a_class_for_every_model_type_of_the_page() -> None:
    known = {
        *modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    }
    for family, _, types in rows():
        found = re.findall(r"`(\w+)`", types)
        assert found, family
        assert set(found) <= known, family


def test_a_preset_is_a_name_on_the_hub() -> None:
    names = {}
    for preset in groups.list_groups()["model"]:
        if preset not in ("hf", "tiny"):
            said = (runtime.conf_dir() / "model" / f"{preset}.yaml").read_text("utf-8")
            names[preset] = yaml.safe_load(said)["name"]
    assert all(re.fullmatch(r"[\w-]+/[\w.-]+", str(name)) for name in names.values())
    assert len(set(names.values())) == len(names)
