"""Imports of large libraries that every process repeats, made cheaper. Standard library only.

`lighten` watches for two modules of transformers as they are imported:

- The names of its models are read from the sources of all of them, 2,000 files, twice in a process
  that loads one. They are read once and kept in the launcher's cache, under the sizes and times of
  those files, as Python keeps bytecode.
- Losses of object detection need scipy, whose import takes longer than DeepSpeed's. transformers
  tells them that it is not installed, unless it is there already, and nobody else: only in the
  thread that imports them, and for their import. Whoever else imports scipy has it.

Where transformers is built in another way, it is imported as ever.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import json
import os
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from launcher.core import runtime
from launcher.core.errors import LauncherError
from launcher.core.files import write_atomic

_INDEX = "transformers.utils.import_utils"
_LOSSES = "transformers.loss.loss_utils"


def lighten() -> None:
    """Make later imports of transformers in this process cheaper; call it before the first."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds the two modules where Python's own finder does, and gives them loaders of ours."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in _LOADERS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is importlib.machinery.SourceFileLoader:
            spec.loader = _LOADERS[name](name, spec.loader.path)
        return spec


class _IndexLoader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        keep_index(module)
        _spare_losses_scipy(module)


class _LossLoader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        _importing_losses.here = "scipy" not in sys.modules
        try:
            super().exec_module(module)
        finally:
            _importing_losses.here = False


_LOADERS = {_INDEX: _IndexLoader, _LOSSES: _LossLoader}


class _ImportOfLosses(threading.local):
    """Whether this thread is in the import of the losses, which is to go without scipy."""

    here = False


_importing_losses = _ImportOfLosses()


def _spare_losses_scipy(module: ModuleType) -> None:
    """Let `module`, transformers' `import_utils`, say to losses alone that there is no scipy."""
    known: Callable[[], bool] | None = getattr(module, "is_scipy_available", None)
    if known is None:
        return

    @functools.wraps(known)
    def is_scipy_available() -> bool:
        return not _importing_losses.here and known()

    module.is_scipy_available = is_scipy_available  # type: ignore[attr-defined]


# ---- the index of models


def keep_index(module: ModuleType) -> None:
    """Let `module`, transformers' `import_utils`, find the index of its models kept.

    An index is what its `create_import_structure_from_path` makes of a folder: for each set of
    required packages the names in each module, and the same of each subfolder by its name.
    """
    read: Callable[[Any], Any] | None = getattr(module, "create_import_structure_from_path", None)
    if read is None or module.__file__ is None:
        return
    models = str(Path(module.__file__).parents[1] / "models")
    kept = ""

    def create_import_structure_from_path(module_path: str | Path) -> Any:
        nonlocal kept
        folder = os.fspath(module_path)
        folder = os.path.dirname(folder) if os.path.isfile(folder) else folder
        if folder != models:
            return read(module_path)
        if not kept:
            kept = _stored(models, str(module.__file__), lambda: read(module_path))
        return _decoded(json.loads(kept)) if kept else read(module_path)

    module.create_import_structure_from_path = (  # type: ignore[attr-defined]
        create_import_structure_from_path
    )


def _stored(models: str, reader: str, read: Callable[[], Any]) -> str:
    """The index of these models as JSON text, read if it is not kept yet; empty if JSON cannot hold
    it as it is."""
    try:
        path = runtime.cache_dir() / "imports" / f"{_fingerprint(models, reader)}.json"
    except (OSError, RuntimeError, LauncherError):  # no home folder, or sources that are no files
        return _text(read())
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        text = path.read_text(encoding="utf-8")
        _decoded(json.loads(text))  # whole and an index
        return text
    text = _text(read())
    with contextlib.suppress(OSError, LauncherError):
        if text:
            write_atomic(path, text, durable=False)
    return text


def _text(index: Any) -> str:
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        text = json.dumps(_encoded(index))
        if _decoded(json.loads(text)) == index:
            return text
    return ""


def _fingerprint(models: str, reader: str) -> str:
    """Of the path, size and time of every source file of the models, and of what reads them."""
    import hashlib  # the command line does without

    digest = hashlib.blake2b(digest_size=16)

    def add(path: str, found: os.stat_result) -> None:
        digest.update(os.fsencode(path) + f"\0{found.st_size} {found.st_mtime_ns}\n".encode())

    add(reader, os.stat(reader))
    left = [models]
    while left:
        with os.scandir(left.pop()) as entries:
            for entry in sorted(entries, key=lambda found: found.name):
                if entry.is_dir():
                    left.append(entry.path)
                elif entry.name.endswith(".py"):
                    add(entry.path, entry.stat())
    return digest.hexdigest()


def _encoded(index: Any) -> Any:
    """An index as JSON can hold it: its sets of packages are no keys there."""
    by_packages = [
        [sorted(packages), {name: sorted(names) for name, names in modules.items()}]
        for packages, modules in index.items()
        if isinstance(packages, frozenset)
    ]
    folders = {name: _encoded(part) for name, part in index.items() if isinstance(name, str)}
    return [by_packages, folders]


def _decoded(stored: Any) -> Any:
    by_packages, folders = stored
    return {
        **{
            frozenset(packages): {name: set(names) for name, names in modules.items()}
            for packages, modules in by_packages
        },
        **{name: _decoded(part) for name, part in folders.items()},
    }
