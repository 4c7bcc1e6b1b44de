"""Tables of names to import paths, resolved only on use. Standard library only."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.errors import ConfigError, did_you_mean


def load(path: str) -> Any:
    """Import `package.module:attribute` and return the attribute."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


class Table(Mapping[str, str]):
    """A plug-in family: option name -> "module:attribute" of its implementation."""

    def __init__(self, key: str, rows: Mapping[str, str]) -> None:
        self.key = key
        self._rows = dict(rows)

    def __getitem__(self, name: str) -> str:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, name: str, row: str) -> None:
        """A further row; `ConfigError` if the name is taken by another."""
        if self._rows.setdefault(name, row) != row:
            found = f"there is a {name!r} already: {self._rows[name]}"
            raise ConfigError(found, where=self.key, hint="choose another name")

    def load(self, name: str) -> Any:
        """Import and return the implementation of `name`; `ConfigError` if there is no such row."""
        if name not in self._rows:
            raise ConfigError(
                f"unknown name {name!r}", where=self.key, hint=did_you_mean(name, self._rows)
            )
        return load(self._rows[name])


def need(module: str, found: str, *, where: str, extra: str) -> Any:
    """A module of the extra `extra`; `ConfigError` that ends `found` with the package it lacks."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        # A package that is there may itself lack one.
        package = (getattr(error, "name", None) or module).partition(".")[0]
        raise ConfigError(
            f"{found} {package}, which is not installed", where=where, hint=install(package, extra)
        ) from error


def installed(package: str) -> bool:
    """Whether a top-level package can be imported; does not import it."""
    return importlib.util.find_spec(package) is not None


def install(package: str, extra: str) -> str:
    """The command that installs a package, in the version that the extra `extra` asks for."""
    return f"pip install '{_requirement(package, extra)}'"


def _requirement(package: str, extra: str) -> str:
    from importlib import metadata  # slow to import, and only a missing package needs it

    try:
        known = metadata.requires("launcher") or []
    except metadata.PackageNotFoundError:  # run from a folder on PYTHONPATH
        known = []
    wanted = package.replace("_", "-").lower()
    for line in known:
        requirement, _, marker = line.partition(";")
        name = re.split(r"[\[<>=!~ ]", requirement, maxsplit=1)[0]
        if name.replace("_", "-").lower() == wanted and f"'{extra}'" in marker.replace('"', "'"):
            return requirement.strip()
    return wanted
