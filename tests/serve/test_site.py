"""The site's settings: every wrong key and value is named at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.core.errors import ConfigError
from launcher.serve import site


def written(folder: Path, text: str) -> Path:
    path = folder / site.FILE
    path.write_text(text)
    return path


def test_without_a_file_the_defaults_hold(tmp_path: Path) -> None:
    assert site.read(tmp_path / site.FILE) == site.Site()
    assert site.read(written(tmp_path, "")) == site.Site()


def test_names_and_aliases(tmp_path: Path) -> None:
    text = """
organization: acme
models:
  small: {overrides: [model=tiny]}
  gpt-3.5-turbo: {alias: small}
chat: {idle_s: 5}
"""
    read = site.read(written(tmp_path, text))
    assert (read.organization, read.chat.idle_s) == ("acme", 5.0)
    assert read.models["small"].overrides == ["model=tiny"]
    assert [read.resolve(name) for name in ("small", "gpt-3.5-turbo", "x")] == [
        "small",
        "small",
        None,
    ]


def test_all_that_is_wrong_is_named_at_once(tmp_path: Path) -> None:
    text = """
organisation: acme
limits: {file_bytes: -1, part_bytes: many}
queue: 3
models:
  a/b: {overrides: [model=tiny]}
  one: {alias: two}
  both: {alias: one, overrides: [x=1]}
"""
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as raised:
        site.read(path)
    found = {problem.where.removeprefix(f"{path}: ") for problem in raised.value.problems}
    assert found == {"organisation", "limits.file_bytes", "limits.part_bytes", "queue"}
    assert "did you mean 'organization'?" in str(raised.value)
    with pytest.raises(ConfigError) as raised:
        site.read(written(tmp_path, text[text.index("models") :]))
    found = {problem.where.removeprefix(f"{path}: ") for problem in raised.value.problems}
    assert found == {"models.a/b", "models.one.alias", "models.both"}
