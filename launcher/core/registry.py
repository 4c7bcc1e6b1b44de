"""Tables of names to import paths, resolved only on use. Standard library only."""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, TypeVar

from launcher.core import owncode
from launcher.core.errors import ConfigError, did_you_mean


def load(path: str) -> Any:
    """Import `package.module:attribute` and return the attribute."""
    module, _, attribute = path.partition(":")
    return getattr(importlib.import_module(module), attribute)


class PluginRow(Protocol):
    """A row that holds facts besides the implementation."""

    @property
    def path(self) -> str:
        """ "module:attribute" of the implementation."""
        ...


R = TypeVar("R", bound="str | PluginRow", covariant=True)


class PluginTable(Mapping[str, R]):
    """A plug-in family: option name -> "module:attribute" of its implementation, or such a row with
    what must be known of it before it is imported.

    With `own`, a name that ends in .py is the path of a user's file with a class of that name.
    """

    def __init__(self, key: str, rows: Mapping[str, R], own: str = "") -> None:
        self.key = key
        self._own = own
        self._rows = dict(rows)

    def __getitem__(self, name: str) -> R:
        return self._rows[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, name: str, row: Any) -> None:
        """A further row; `ConfigError` if the name is taken by another."""
        if self._rows.setdefault(name, row) != row:
            found = f"there is a {name!r} already: {self._rows[name]}"
            raise ConfigError(found, where=self.key, hint="choose another name")

    def load(self, name: str) -> Any:
        """Import and return the implementation of `name`; `ConfigError` if there is none."""
        if self._own and name.endswith(".py"):
            return owncode.load(name, self._own, where=self.key)
        if name not in self._rows:
            raise ConfigError(
                f"unknown name {name!r}", where=self.key, hint=did_you_mean(name, self._rows)
            )
        row = self._rows[name]
        return load(row if isinstance(row, str) else row.path)


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
    """Whether a top-level package can be imported; does not import it.

    A mere folder of that name, such as a virtual environment in the working folder, is none.
    """
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def version(package: str) -> str | None:
    """Version of an installed package; None without it."""
    from importlib import metadata  # slow to import, and only a run that starts needs it

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def install(package: str, extra: str) -> str:
    """The command that installs a package, in the version that the extra `extra` asks for."""
    return f"pip install '{_requirement(package, extra)}'"


#: Packages that are installed under another name.
_DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def _requirement(package: str, extra: str) -> str:
    from importlib import metadata  # slow to import, and only a missing package needs it

    try:
        known = metadata.requires("launcher") or []
    except metadata.PackageNotFoundError:  # run from a folder on PYTHONPATH
        known = []
    wanted = _DISTRIBUTIONS.get(package, package).replace("_", "-").lower()
    for line in known:
        requirement, _, marker = line.partition(";")
        name = re.split(r"[\[<>=!~ ]", requirement, maxsplit=1)[0]
        is_asked = "extra" not in marker or f"'{extra}'" in marker.replace('"', "'")
        if name.replace("_", "-").lower() == wanted and is_asked:
            return requirement.strip()
    return wanted
