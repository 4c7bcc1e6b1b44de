"""Graders by their wire form, which is that of OpenAI's API, from objects and from YAML files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from launcher.core.errors import ConfigError, did_you_mean
from launcher.core.registry import PluginTable
from launcher.core.runtime import user_path
from launcher.graders.grader import Grader, Setting
from launcher.graders.members import Members, require_small

#: Type of a grader -> its class.
GRADERS = PluginTable(
    "grader.type",
    {
        "string_check": "launcher.graders.string_check:StringCheckGrader",
        "text_similarity": "launcher.graders.text_similarity:TextSimilarityGrader",
        "numeric_match": "launcher.graders.numeric_match:NumericMatchGrader",
        "json_schema": "launcher.graders.json_schema:JsonSchemaGrader",
        "python": "launcher.graders.python:PythonGrader",
        "tests": "launcher.graders.tests:TestsGrader",
        "score_model": "launcher.graders.judged:ScoreModelGrader",
        "label_model": "launcher.graders.judged:LabelModelGrader",
        "reward_model": "launcher.graders.reward_model:RewardModelGrader",
        "multi": "launcher.graders.multi:MultiGrader",
    },
)
#: Largest file of a grader, in bytes.
MAX_FILE = 1 << 20


def from_wire(value: Any, setting: Setting | None = None, where: str = "grader") -> Grader:
    """The grader of a wire form; `ConfigError` with all that is wrong with it."""
    require_small(value, where)
    kind = value.get("type") if isinstance(value, Mapping) else None
    if not isinstance(kind, str) or kind not in GRADERS:
        hint = did_you_mean(str(kind), GRADERS)
        found = "no object with a type" if kind is None else f"there is no grader {kind!r}"
        raise ConfigError(found, where=f"{where}.type", hint=hint)
    members = Members(value, where)
    grader: Grader = GRADERS.load(kind)(members, setting or Setting())
    members.require()
    return grader


def from_file(path: str | Path, setting: Setting | None = None, where: str | None = None) -> Grader:
    """The grader of a YAML or JSON file, which errors call `where`; paths in it are relative to its
    folder."""
    file, where = user_path(path), where or str(path)
    try:
        if file.stat().st_size > MAX_FILE:
            raise ValueError(f"more than {MAX_FILE:,} bytes")
        value = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        hint = "a YAML file with the members of a grader, as docs/graders.md shows"
        raise ConfigError(f"cannot be read: {error}", where=where, hint=hint) from error
    return from_wire(value, replace(setting or Setting(), folder=file.parent), where)
