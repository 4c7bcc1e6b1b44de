"""The YAML files that a command line selects, in the order in which they are merged.

Hydra decides which files those are (see `launcher.config.compose.hydra`): its grammar, defaults
lists, packages and search path; what stands in them is read by `yamlfile`.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.config.compose import groups, yamlfile
from launcher.config.derive import copies
from launcher.config.schema import conversion
from launcher.core.errors import ConfigError

_MISSING = object()


@dataclass(frozen=True, slots=True)
class Layer:
    """One file: what it says, placed where it belongs in the config, interpolations unresolved."""

    file: Path
    data: dict[str, Any]
    lines: Mapping[str, int] = field(default_factory=dict)
    """Dotted key -> its line in the file."""

    def get(self, key: str, default: Any = None) -> Any:
        """The value that the file gives a dotted key."""
        return conversion.select(self.data, key, default)

    def sets(self, key: str) -> bool:
        """Whether the file gives a dotted key a value, null included."""
        return self.get(key, _MISSING) is not _MISSING

    def place(self, key: str) -> str:
        """file:line of a key that it sets, or of the mapping around it."""
        return placed(str(self.file), self.lines, key)


def placed(file: str, lines: Mapping[str, int], key: str) -> str:
    """file:line of a dotted key, or of the nearest one above it that has a line."""
    while key and key not in lines:
        key = key.rpartition(".")[0]
    return f"{file}:{lines[key]}" if key else file


def read(choices: Mapping[str, str | None], folders: Sequence[Path]) -> list[Layer]:
    """The files for these group choices (None: no option of that group), lowest layer first.

    Raises `ConfigError` for a file that is broken or asks for an option that does not exist.
    """
    import yaml

    with _no_garbage_collection():
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        try:
            return _read(choices, folders)
        except (
            HydraException,
            OmegaConfBaseException,
            yaml.YAMLError,
            ValueError,
            OSError,
        ) as error:
            options = " ".join(f"{group}={name}" for group, name in choices.items() if name)
            hint = f"mend the YAML file; asked for: {options or 'the defaults'}"
            found = "\n".join(str(error).strip().splitlines()[:4])
            raise ConfigError(found, where="config files", hint=hint) from error


def _read(choices: Mapping[str, str | None], folders: Sequence[Path]) -> list[Layer]:
    from launcher.config.compose import hydra

    layers = []
    for name, package in hydra.chosen_files(groups.ROOT, choices, folders):
        file = groups.option_file(folders, name)
        assert file is not None  # Hydra has raised for what is missing
        layers.append(alone(file, package))
    return layers


def alone(file: Path, package: str) -> Layer:
    """One file of a group, without what it takes from others."""
    tree = yamlfile.read(file, str(file))
    tree.pop("defaults", None)
    data, lines = yamlfile.content(tree, package)
    return Layer(file, copies.beside(file, _placed(data, package)), lines)


def _placed(content: dict[str, Any], package: str) -> dict[str, Any]:
    for name in reversed(package.split(".") if package else []):
        content = {name: content}
    return content


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Imports and parsing make many small objects and little garbage: do not search them."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
