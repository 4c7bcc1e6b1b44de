"""Hydra's sweepers over our launcher: Hydra expands the overrides, `launch` gets them in batches.

Hydra is given only what varies and its own settings. It composes nothing of a trial, so a thousand
trials cost it next to nothing and one wrong combination does not end the sweep.
"""

from __future__ import annotations

import importlib
import logging
import re
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from omegaconf.errors import OmegaConfBaseException

from launcher.errors import ConfigError
from launcher.sweeps.folder import SweepDir
from launcher.sweeps.space import Dimension, Groups, Space, hydra_text

#: What runs a batch of trials: their own overrides -> the value of each (None: it has none).
Launch = Callable[[list[list[str]]], list[float | None]]
_ROOT = "launcher_sweep"
#: What Hydra's grammar has a word for, as a key and as a value.
_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*([./][A-Za-z0-9_]+)*")
_PLAIN = re.compile(r"[A-Za-z0-9_.+-]+")
#: Hydra makes plug-ins by name and takes only those below hydra_plugins.
_PLACE = "hydra_plugins.launcher"


class TrialLauncher(Launcher):
    """`hydra/launcher=launcher`: hands batches of overrides to the function of this sweep."""

    __module__ = _PLACE
    launch_batch: Launch

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        """Nothing to set up: trials are composed by `making`, not by Hydra."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[Any]:
        """Run a batch; a sweeper that minimises finds the metric in `return_value`."""
        batch = [[word for word in words if not _is_hydra(word)] for words in job_overrides]
        values = type(self).launch_batch(batch)
        return [
            JobReturn(overrides=list(words), status=JobStatus.COMPLETED, _return_value=_number(v))
            for words, v in zip(job_overrides, values, strict=True)
        ]


class _Loader(ConfigLoaderImpl):
    """Hydra's loader for its own settings alone."""

    def __init__(self, path: Any, groups: Groups) -> None:
        super().__init__(path)
        self._groups = groups

    def load_sweep_config(self, master_config: Any, sweep_overrides: list[str]) -> Any:
        """What a sweeper checks a trial with: we do that ourselves, without stopping the others."""
        return master_config

    def get_group_options(self, group_name: str, *args: Any, **options: Any) -> list[str]:
        """Options of our groups, for `glob()`."""
        return self._groups.get_group_options(group_name)

    def ensure_main_config_source_available(self) -> None:
        """The main config stands in the config store."""


def sweeper_name(space: Space) -> str | None:
    """The sweeper that the command line chooses by `hydra/sweeper=NAME`, if it does."""
    names = [word.partition("=")[2] for word in space.hydra if word.startswith("hydra/sweeper=")]
    return names[-1] if names else None


def run(
    space: Space, options: Mapping[str, Sequence[str]], sweep: SweepDir, launch: Launch
) -> None:
    """Run Hydra's sweeper over `launch`; `ConfigError` for what Hydra refuses."""
    logging.getLogger("hydra").setLevel(logging.WARNING)
    place = {"dir": str(sweep.path), "subdir": "hydra"}
    ConfigStore.instance().store(name=_ROOT, node={"hydra": {"sweep": place}})
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    path.append("schema", "structured://")
    own = [word for word in space.hydra if not word.startswith("hydra/launcher=")]
    words = ["hydra/launcher=launcher", *own]
    names = {_name(number, d): d for number, d in enumerate(space.swept.values())}
    is_grid = sweeper_name(space) in (None, "basic")
    shown = {name: _shown(dimension, is_grid) for name, dimension in names.items()}
    words += [f"{name}={_text(d, shown[name])}" for name, d in names.items()]

    def as_typed(word: str) -> str:
        name, _, text = word.partition("=")
        return f"{names[name].key}={shown[name].get(text, text)}" if name in names else word

    _register(lambda batch: launch([[as_typed(word) for word in words] for words in batch]))
    try:
        hydra = Hydra(task_name=sweep.name, config_loader=_Loader(path, Groups(options)))
        GlobalHydra.instance().initialize(hydra)
        # Logging stays as it is: Hydra's own would write beside every run folder.
        hydra.multirun(_ROOT, _no_task, words, with_log_configuration=False)
    except (HydraException, OmegaConfBaseException, ImportError) as error:
        reason = "\n".join(str(error).strip().splitlines()[:4])
        raise ConfigError(
            f"Hydra: {reason}",
            where="sweep",
            hint="see the settings of the sweeper in Hydra's documentation",
        ) from error
    finally:
        GlobalHydra.instance().clear()


def _name(number: int, dimension: Dimension) -> str:
    """A key that Hydra's grammar has a word for."""
    return dimension.key if _WORD.fullmatch(dimension.key) else f"key{number}"


def _shown(dimension: Dimension, is_grid: bool) -> dict[str, str]:
    """What Hydra makes of each listed value -> as it was typed; {} for a range that its sweeper is
    to know as one.

    Only numbers and names go through its grammar; for all else a name stands in, because texts
    would come back otherwise than they were typed.
    """
    if dimension.numbers and not is_grid:
        return {}
    plain = all(_PLAIN.fullmatch(each) for each in dimension.values)
    found = {hydra_text(each): each for each in dimension.values} if plain else {}
    if len(found) == len(dimension.values):
        return found
    return {f"value{number}": each for number, each in enumerate(dimension.values)}


def _text(dimension: Dimension, shown: Mapping[str, str]) -> str:
    return f"choice({','.join(shown)})" if shown else dimension.text


def _register(launch: Launch) -> None:
    """Make the launcher known to Hydra under the name that it imports plug-ins by."""
    TrialLauncher.launch_batch = staticmethod(launch)
    try:
        package = importlib.import_module("hydra_plugins")
    except ImportError:  # no other plug-in is installed
        package = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
        package.__path__ = []
    module = sys.modules[__name__]
    sys.modules[_PLACE] = module
    package.launcher = module  # type: ignore[attr-defined]
    Plugins.instance().register(TrialLauncher)
    target = {"_target_": f"{_PLACE}.{TrialLauncher.__name__}"}
    ConfigStore.instance().store(group="hydra/launcher", name="launcher", node=target)


def _no_task(config: Any) -> None:
    """Hydra's launchers call a function for each trial; ours starts processes."""


def _is_hydra(word: str) -> bool:
    return word.lstrip("+~").startswith(("hydra.", "hydra/"))


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
