"""Packages of others that add variants: those in the namespace package `launcher_plugins`.

Any installed project, and any folder on PYTHONPATH, may have a part of it. Each package is imported
when the tables of `variants` first are, and adds its rows with `variants.add`; its folder `conf`
offers options of groups. Standard library only.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator
from pathlib import Path

NAMESPACE = "launcher_plugins"


def load() -> None:
    """Import all of them; one that cannot be is told on stderr, and its variants are not known: no
    command dies of what it does not use."""
    for name, folder in _packages():
        try:
            importlib.import_module(f"{NAMESPACE}.{name}")
        except Exception as error:
            found = f"the plugin in {folder} cannot be imported: {type(error).__name__}: {error}"
            print(f"warning: {found}\n  HINT: mend it, or take it off the path", file=sys.stderr)


def conf_dirs() -> list[Path]:
    """Their folders of group options."""
    folders = [folder / "conf" for _, folder in _packages()]
    return [folder for folder in folders if folder.is_dir()]


def _packages() -> Iterator[tuple[str, Path]]:
    """Name and folder of each, once: what is imported by a name is the first on the path."""
    known = set()
    spec = importlib.util.find_spec(NAMESPACE)
    if spec is None or spec.submodule_search_locations is None:
        return
    for place in spec.submodule_search_locations:
        for found in pkgutil.iter_modules([place]):
            if found.ispkg and found.name not in known:
                known.add(found.name)
                yield found.name, Path(place, found.name)
