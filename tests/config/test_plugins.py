"""Variants that packages of others add."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config.compose import compose, groups
from launcher.config.schema import plugins, typed, variants
from launcher.errors import ConfigError
from launcher.registry import Table
from support.plugins import installed
from support.ranks import environment

ROWS = """
from dataclasses import dataclass

from launcher.config.schema import variants
from launcher.config.schema.launch import LaunchConfig


@dataclass(kw_only=True, slots=True)
class NiceConfig(LaunchConfig):
    name: str = "nice"
    niceness: int = 10


variants.add(variants.LAUNCHERS, "nice", "mine.nice:Nice", options=NiceConfig)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the plugin `mine`."""
    package = tmp_path / "site" / "launcher_plugins" / "mine"
    (package / "conf" / "launch").mkdir(parents=True)
    (package / "__init__.py").write_text(ROWS)
    (package / "conf" / "launch" / "nice.yaml").write_text("name: nice\n")
    return tmp_path / "site"


def test_a_plugin_adds_a_row_its_options_and_its_group_options(folder: Path) -> None:
    with installed(folder):
        config = compose.compose(["launch=nice", "launch.niceness=3"])
        assert (config.launch.name, config.launch.niceness) == ("nice", 3)
        assert variants.LAUNCHERS["nice"] == "mine.nice:Nice"
        assert "nice" in groups.list_groups()["launch"]
        assert "launch.niceness" in typed.leaves()
    assert "nice" not in variants.LAUNCHERS
    with pytest.raises(ConfigError, match="nice"):
        compose.compose(["launch=nice"])


def test_a_process_that_finds_a_plugin_has_it(folder: Path) -> None:
    ask = "from launcher.config.compose import compose as c; print(c(['launch=nice']).launch.name)"
    done = subprocess.run(
        [sys.executable, "-c", ask],
        env=environment(PYTHONPATH=f"{folder}:{environment()['PYTHONPATH']}"),
        capture_output=True,
        text=True,
    )
    assert done.stdout == "nice\n", done.stderr


def test_a_plugin_that_cannot_be_imported_is_named(folder: Path) -> None:
    package = folder / "launcher_plugins" / "mine"
    (package / "__init__.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(ConfigError) as caught, installed(folder):
        pass
    assert str(package) in str(caught.value)
    assert "nothing_of_this_name" in str(caught.value)


def test_without_plugins_there_is_nothing_to_load() -> None:
    plugins.load()
    assert plugins.conf_dirs() == []


def test_a_name_is_given_once() -> None:
    table = Table("launch.name", {"a": "m:A"})
    table.add("a", "m:A")
    table.add("b", "m:B")
    with pytest.raises(ConfigError, match="there is a 'a' already: m:A"):
        table.add("a", "m:C")
    assert dict(table) == {"a": "m:A", "b": "m:B"}
