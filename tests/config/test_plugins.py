"""Variants that packages of others add."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.config.compose import compose, groups
from launcher.config.schema import Config, TrackerConfig, conversion, plugins, variants
from launcher.core.errors import ConfigError
from launcher.core.registry import PluginTable
from launcher.core.rundir import RunDir
from launcher.track.tracker import Trackers
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
        assert "launch.niceness" in conversion.leaves()
    assert "nice" not in variants.LAUNCHERS
    with pytest.raises(ConfigError, match="nice"):
        compose.compose(["launch=nice"])


def test_a_process_that_finds_a_plugin_has_it(folder: Path) -> None:
    ask = "from launcher.config.compose.compose import compose as c\n"
    ask += "print(c(['launch=nice']).launch.name)"
    done = subprocess.run(
        [sys.executable, "-c", ask],
        env=environment(PYTHONPATH=f"{folder}:{environment()['PYTHONPATH']}"),
        capture_output=True,
        text=True,
    )
    assert done.stdout == "nice\n", done.stderr


@pytest.mark.parametrize(("given", "is_named"), [("{0}", False), ("{0}:", False), ("{0}:.", True)])
def test_plugins_of_the_current_folder_are_those_of_a_path_that_names_it(
    folder: Path, given: str, is_named: bool
) -> None:
    told = folder / "launcher_plugins" / "mine" / "__init__.py"
    told.write_text(f"{ROWS}\nimport sys\nprint('loaded', file=sys.stderr)\n")
    done = subprocess.run(
        [sys.executable, "-m", "launcher.cli", "config", "seed=1"],
        env=environment(PYTHONPATH=given.format(Path(__file__).parents[2])),
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert "seed: 1" in done.stdout, done.stderr
    assert ("loaded" in done.stderr) is is_named


def test_a_plugin_that_cannot_be_imported_is_told_and_no_command_dies_of_it(folder, capsys) -> None:
    package = folder / "launcher_plugins" / "mine"
    (package / "__init__.py").write_text("import nothing_of_this_name\n")
    with installed(folder):
        assert compose.compose([]).launch.name == "local"
        with pytest.raises(ConfigError, match="launch"):
            compose.compose(["launch.name=nice"])
    said = capsys.readouterr().err
    assert said.startswith(f"warning: the plugin in {package} cannot be imported")
    assert "nothing_of_this_name" in said


def test_an_objective_of_a_plugin_has_its_options_wherever_it_is_made(folder: Path) -> None:
    package = folder / "launcher_plugins" / "mine"
    (package / "__init__.py").write_text(
        "from dataclasses import dataclass\n"
        "from launcher.config.schema import ObjectiveConfig, variants\n"
        "@dataclass(kw_only=True, slots=True)\n"
        "class Mine(ObjectiveConfig):\n"
        "    name: str = 'mine'\n"
        "    beta: float = 0.5\n"
        "variants.add(variants.OBJECTIVES, 'mine', 'launcher.objectives.sft:Sft', options=Mine)\n"
    )
    with installed(folder):
        made = conversion.objective({"name": "mine", "beta": 0.25})
        assert (type(made).__name__, made.beta) == ("Mine", 0.25)


def test_a_tracker_of_a_plugin_has_options_of_its_own(folder: Path, tmp_path: Path) -> None:
    package = folder / "launcher_plugins" / "mine"
    (package / "__init__.py").write_text(
        "from dataclasses import dataclass\n"
        "from launcher.config.schema import TrackerConfig, variants\n"
        "@dataclass(kw_only=True, slots=True)\n"
        "class Mine(TrackerConfig):\n"
        "    uri: str | None = None\n"
        "    @property\n"
        "    def is_on(self): return self.uri is not None\n"
        "class Tracker:\n"
        "    stays_on = False\n"
        "    def __init__(self, run, config, resolved):\n"
        "        self.file = run.path / config.track.mine.uri\n"
        "    def start(self, resumed_step): self.file.write_text('begun')\n"
        "row = f'{__name__}:Tracker'\n"
        "variants.add(variants.TRACKERS, 'mine', row, options=Mine)\n"
        "variants.add(variants.TRACKERS, 'other', row, options=Mine)\n"
        "variants.add(variants.TRACKERS, 'other', row, options=Mine)\n"
    )
    (package / "conf" / "track").mkdir()
    (package / "conf" / "track" / "mine.yaml").write_text("name: mine\nmine: {uri: all}\n")
    with installed(folder):
        assert {
            "track.mine.uri",
            "track.other.uri",
            "track.wandb.mode",
        } <= conversion.leaves().keys()
        assert Config().track.mine.uri is None
        config = compose.compose(["track=mine", "track.wandb.project=p"])
        assert (config.track.mine.uri, config.track.other.is_on) == ("all", False)
        config = compose.compose(["track.mine.uri=told.txt"])
        compose.save(config, tmp_path / "config.yaml")
        assert compose.load(tmp_path / "config.yaml") == config
        assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config))  # noqa: S301
        with pytest.raises(ConfigError, match=r"track\.mine\.url: unknown key"):
            compose.compose(["track.mine.url=told.txt"])
        Trackers.open(RunDir(tmp_path), config, {})
        assert (tmp_path / "told.txt").read_text() == "begun"
    assert "track.mine.uri" not in conversion.leaves()


def test_options_of_a_tracker_are_those_of_a_tracker() -> None:
    for name, options in (("mine", object), ("my.own", TrackerConfig)):
        with pytest.raises(ConfigError, match="no section of track"):
            variants.add(variants.TRACKERS, name, "m:M", options=options)
    assert {"mine", "my.own"}.isdisjoint(variants.TRACKERS)


def test_options_go_with_a_section_that_has_variants() -> None:
    with pytest.raises(ConfigError, match="has no options by variant"):
        variants.add(variants.METRICS, "mine", "m:M", options=object)
    assert "mine" not in variants.METRICS


def test_without_plugins_there_is_nothing_to_load() -> None:
    plugins.load()
    assert plugins.conf_dirs() == []


def test_a_name_is_given_once() -> None:
    table = PluginTable("launch.name", {"a": "m:A"})
    table.add("a", "m:A")
    table.add("b", "m:B")
    with pytest.raises(ConfigError, match="there is a 'a' already: m:A"):
        table.add("a", "m:C")
    assert dict(table) == {"a": "m:A", "b": "m:B"}
