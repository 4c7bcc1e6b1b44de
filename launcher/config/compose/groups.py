"""The groups and options that `conf/` offers, found by listing folders. Standard library only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from launcher.config.schema import plugins
from launcher.core import runtime
from launcher.core.errors import ConfigError

#: groups in the order in which help and documentation show them.
GROUPS = (
    "experiment",
    "model",
    "data",
    "objective",
    "peft",
    "engine",
    "optim",
    "schedule",
    "batch",
    "checkpoint",
    "eval",
    "track",
    "cluster",
    "launch",
    "sweep",
)
#: file that lists the default option of every group.
ROOT = "config"


def search_path(config_dirs: Iterable[str | Path] = ()) -> list[Path]:
    """The packaged `conf/` folder, those of plugins and the user's; `ConfigError` if one does not
    exist."""
    folders = [runtime.conf_dir(), *plugins.conf_dirs()]
    for given in config_dirs:
        folder = runtime.user_path(given).resolve()
        if not folder.is_dir():
            raise ConfigError(
                f"no such folder: {folder}",
                where="config folder",
                hint="give a folder with group sub-folders, such as experiment/mine.yaml",
            )
        folders.append(folder)
    return folders


def list_groups(config_dirs: Iterable[str | Path] = ()) -> dict[str, list[str]]:
    """Group -> names of its options, sorted so that numbers count (4b before 14b).

    Raises `ConfigError` if two folders offer the same option: neither should win in silence.
    """
    return options_in(search_path(config_dirs))


def options_in(folders: Sequence[Path]) -> dict[str, list[str]]:
    """Like `list_groups`, for folders that `search_path` returned."""
    found: dict[str, dict[str, Path]] = {group: {} for group in GROUPS}
    for folder in folders:
        for file in folder.glob("*/*.yaml"):
            options = found.setdefault(file.parent.name, {})
            if file.stem in options:
                raise ConfigError(
                    f"{options[file.stem]} and {file} both define {file.stem!r}",
                    where=file.parent.name,
                    hint=f"rename {file}",
                )
            options[file.stem] = file
    return {group: sorted(options, key=_natural) for group, options in found.items()}


def option_file(folders: Iterable[Path], config_path: str) -> Path | None:
    """The YAML file of `group/option` (or of the root config), or None."""
    files = (folder / f"{config_path}.yaml" for folder in folders)
    return next((file for file in files if file.is_file()), None)


def _natural(name: str) -> list[tuple[float, str]]:
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(float(part), "") if i % 2 else (-1.0, part) for i, part in enumerate(parts)]
