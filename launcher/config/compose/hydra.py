"""What is used of Hydra's inside. Nothing else in this package names it, so that a new release of
Hydra has one file to be held against (1.3.2 and 1.3.8 are alike in it).

Of Hydra's loader only that half is used which chooses files: `hydra.compose` would also load, type
and merge Hydra's own settings, as much work again, for a result that is thrown away. And a sweeper
gets a loader that knows Hydra's own settings alone. Imported where it is used: it is slow.
"""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra._internal.config_repository import CachingConfigRepository, ConfigRepository
from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
from hydra._internal.defaults_list import create_defaults_list
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins

#: Hydra makes plug-ins by name and takes only those below hydra_plugins.
_PLUGIN = "hydra_plugins.launcher"


def chosen_files(
    root: str, choices: Mapping[str, str | None], folders: Sequence[Path]
) -> list[tuple[str, str]]:
    """(file below a folder without its ending, package) of the defaults list of `root` with these
    options of groups, lowest first.

    Raises `HydraException`, and what OmegaConf and PyYAML raise, for a broken or missing file.
    """
    alone = len(folders) == 1  # the packaged one, whose files stay as they are
    repository = _packaged if alone else _repository
    words = [f"{group}={name}" for group, name in choices.items() if name is not None]
    chosen = create_defaults_list(
        repo=repository(*folders),
        config_name=root,
        overrides_list=OverridesParser.create().parse_overrides(words),
        prepend_hydra=False,
        skip_missing=False,
    )
    return [(default.config_path or "", default.package or "") for default in chosen.defaults]


def _repository(*folders: Path) -> CachingConfigRepository:
    """The files of these folders, each read once."""
    Plugins.instance()  # registers the readers of files
    path = ConfigSearchPathImpl()
    for folder in folders:
        path.append("launcher", f"file://{folder}")
    path.append("schema", "structured://")
    return CachingConfigRepository(ConfigRepository(path))


_packaged = cache(_repository)


class _Groups:
    """The one thing that an override parser and sweepers ask a loader for: `glob()`."""

    def __init__(self, options: Mapping[str, Sequence[str]]) -> None:
        self._options = options

    def get_group_options(self, group_name: str, results_filter: Any = None) -> list[str]:
        return list(self._options.get(group_name, ()))


def parser(options: Mapping[str, Sequence[str]] | None = None) -> OverridesParser:
    """A parser of overrides; `options` of groups are what `glob()` chooses from. To make one costs
    more than a parse."""
    groups: Any = _Groups(options) if options is not None else None
    return OverridesParser.create(config_loader=groups)


def multirun(
    words: Sequence[str],
    settings: Mapping[str, Any],
    options: Mapping[str, Sequence[str]],
    launch: Callable[[list[list[str]]], list[float]],
    name: str,
) -> None:
    """Expand `words` by the sweeper that they choose, and give `launch` each batch of overrides:
    the metric of each is what a sweeper minimises.

    `settings` are Hydra's own; of a trial nothing is composed. Raises `HydraException`,
    `ImportError` and what OmegaConf raises.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.hydra import Hydra
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra

    class Loader(ConfigLoaderImpl):
        """A loader of Hydra's own settings alone."""

        def load_sweep_config(self, master_config: Any, sweep_overrides: list[str]) -> Any:
            """What a sweeper checks a trial with: that would end the sweep at the first wrong."""
            return master_config

        def get_group_options(self, group_name: str, *args: Any, **more: Any) -> list[str]:
            return _Groups(options).get_group_options(group_name)

        def ensure_main_config_source_available(self) -> None:
            """The main config stands in the config store."""

    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    path.append("schema", "structured://")
    root = "launcher_sweep"
    ConfigStore.instance().store(name=root, node={"hydra": dict(settings)})
    _register(launch)
    try:
        hydra = Hydra(task_name=name, config_loader=Loader(path))
        GlobalHydra.instance().initialize(hydra)
        # Logging stays as it is: Hydra's own would write beside every run folder.
        hydra.multirun(
            root, _no_task, ["hydra/launcher=launcher", *words], with_log_configuration=False
        )
    finally:
        GlobalHydra.instance().clear()


def _register(launch: Callable[[list[list[str]]], list[float]]) -> None:
    """Make a launcher of trials known to Hydra under the name that it imports plug-ins by."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.utils import JobReturn, JobStatus
    from hydra.plugins.launcher import Launcher

    class TrialLauncher(Launcher):
        """`hydra/launcher=launcher`: hands batches of overrides to the function of this sweep."""

        __module__, __qualname__ = _PLUGIN, "TrialLauncher"  # by which Hydra finds it

        def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
            """Nothing to set up: Hydra composes no trial."""

        def launch(
            self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
        ) -> list[JobReturn]:
            found = launch([list(words) for words in job_overrides])
            return [
                JobReturn(overrides=list(words), status=JobStatus.COMPLETED, _return_value=metric)
                for words, metric in zip(job_overrides, found, strict=True)
            ]

    try:
        package = importlib.import_module("hydra_plugins")
    except ImportError:  # no other plug-in is installed
        package = sys.modules["hydra_plugins"] = types.ModuleType("hydra_plugins")
        package.__path__ = []
    module = sys.modules[_PLUGIN] = types.ModuleType(_PLUGIN)
    module.TrialLauncher = TrialLauncher  # type: ignore[attr-defined]
    package.launcher = module  # type: ignore[attr-defined]
    Plugins.instance().register(TrialLauncher)
    target = {"_target_": f"{_PLUGIN}.{TrialLauncher.__name__}"}
    ConfigStore.instance().store(group="hydra/launcher", name="launcher", node=target)


def _no_task(config: Any) -> None:
    """Hydra's launchers call a function for each trial; ours starts processes."""
