"""The settings that docs/serve.md shows can be used as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from launcher.config.compose import compose
from launcher.serve import site

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serve.md"
SETTINGS = re.findall(r"^```yaml (\S+)\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)


@pytest.mark.parametrize(("name", "text"), SETTINGS, ids=[name for name, _ in SETTINGS])
def test_settings_are_read_and_their_models_compose(name: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / Path(name).name
    assert file.name == site.FILE
    file.write_text(text)
    found = site.read(file)
    assert found.models
    for offer in found.models.values():
        compose.compose([*found.overrides, *offer.overrides])
