"""Tables of names to import paths, resolved only on use. Standard library only."""

from __future__ import annotations

import importlib
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
        raise ConfigError(
            f"{found} {module.partition('.')[0]}",
            where=where,
            hint=f"pip install 'launcher[{extra}]'",
        ) from error
