"""Files of records, and configs that read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from launcher.config.schema import Config
from launcher.config.schema.data_report import ReportConfig
from support.configs import make_config


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Write records (objects, or lines as they are) as JSONL and give the path."""

    def make(records: Iterable[Any], name: str = "train.jsonl") -> str:
        path = tmp_path / name
        lines = [r if isinstance(r, str) else json.dumps(r, ensure_ascii=False) for r in records]
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return str(path)

    return make


@pytest.fixture
def configure(tmp_path: Path) -> Callable[..., Config]:
    """A config without a model, nothing held out, one worker; options are those of `data`."""

    def make(report: dict[str, Any] | None = None, **data: Any) -> Config:
        defaults = {"cache": str(tmp_path / "cache"), "workers": 1, "validation_share": 0.0}
        return make_config(data={**defaults, **data, "report": ReportConfig(**(report or {}))})

    return make
