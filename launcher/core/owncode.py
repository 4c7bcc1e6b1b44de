"""Python files of the user's own, and the modules beside them that they import.

A file is loaded as a package whose modules lie beside it: `from .helper import read` finds
`helper.py`, and what that imports in this way. A copy of the file has copies of its modules in a
folder of its own, `NAME_modules`. Standard library only.
"""

from __future__ import annotations

import ast
import importlib.machinery
import importlib.util
import os
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError, Problem


def load(name: str, attribute: str, *, where: str) -> Any:
    """An attribute of a Python file of the user's own; `ConfigError` if it has none."""
    path = Path(os.path.expanduser(name)).resolve()
    try:
        info = path.stat()
        return getattr(_module(path, info.st_mtime_ns, info.st_size), attribute)
    except Exception as error:
        raise ConfigError(
            f"{path} cannot be used: {type(error).__name__}: {error}",
            where=where,
            hint=f"give a Python file with a class {attribute}",
        ) from error


@cache
def _module(path: Path, mtime_ns: int, size: int) -> Any:
    """The file as a module, loaded once as it is: its classes must not exist twice."""
    spec = importlib.util.spec_from_file_location(
        f"launcher_own_{path.stem}_{abs(hash((path, mtime_ns))):x}",
        path,
        submodule_search_locations=[str(folder_of_modules(path))],
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the module of their class
    # What a process hides from libraries that can do without it, the file may need.
    hidden = [name for name in ("torch",) if sys.modules.get(name, module) is None]
    for name in hidden:
        del sys.modules[name]
    try:
        spec.loader.exec_module(module)
    finally:
        for name in hidden:
            sys.modules.setdefault(name, None)  # type: ignore[arg-type]
    return module


def copied_modules(name: str) -> str:
    """The folder, beside a copy called `name`, in which copies of its modules lie."""
    return f"{Path(name).stem}_modules"


def folder_of_modules(path: Path) -> Path:
    """Where the modules of a file lie: in a folder of their own if it is a copy, or beside it."""
    copies = path.with_name(copied_modules(path.name))
    return copies if copies.is_dir() else path.parent


def modules(path: Path) -> dict[str, Path]:
    """The modules that a file imports from beside it, and those that they import: name below
    `folder_of_modules` -> file, by name. {} for a file that cannot be read or parsed.

    Imports are found that are written as such, wherever in the file.
    """
    root = folder_of_modules(path)
    found: dict[str, Path] = {}
    todo = [(path, root)]
    while todo:
        file, package = todo.pop()
        for module in _imported(file, package, root):
            name = module.relative_to(root).as_posix()
            if name not in found and module != path:
                found[name] = module
                todo.append((module, module.parent))
    return dict(sorted(found.items()))


def _imported(file: Path, package: Path, root: Path) -> Iterator[Path]:
    """Files that the relative imports of a file name, in a folder `root` or below."""
    for node in _imports(file):
        if not (isinstance(node, ast.ImportFrom) and node.level):
            continue
        base = package
        for _ in range(node.level - 1):
            base = base.parent
        if not base.is_relative_to(root):
            continue  # Python says at the import that there is no such package
        for part in (node.module or "").split(".") if node.module else ():
            yield from _files(base, part)
            base = base / part
        for alias in node.names:
            yield from _files(base, alias.name)


def _files(folder: Path, name: str) -> Iterator[Path]:
    """The file of a module, or of a package, in a folder; none if it has another kind."""
    for file in (folder / name / "__init__.py", folder / f"{name}.py"):
        if file.is_file():
            yield file
            return


def _imports(file: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    try:
        tree = ast.parse(file.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def problems(path: Path, where: str) -> Iterator[Problem]:
    """Imports of modules that lie beside a file, as if they were installed: Python finds them from
    one folder alone, and nobody keeps a copy of them."""
    root = folder_of_modules(path)
    for file in (path, *modules(path).values()):
        for name in dict.fromkeys(_absolute(file)):
            beside = next(_files(root, name), None)
            if beside is not None and beside != path and not _is_installed(name):
                found = f"{file} imports {name}, which lies beside it and would not be kept"
                hint = f"write `from .{name} import ...`, or `from . import {name}`"
                yield Problem(where, found, f"{hint}; or install it as a package")


def _absolute(file: Path) -> Iterator[str]:
    """Names of the packages that a file imports otherwise than from beside it."""
    for node in _imports(file):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif not node.level and node.module:
            yield node.module.partition(".")[0]


def _is_installed(name: str) -> bool:
    """Whether a package is found whatever the current folder is."""
    if name in sys.stdlib_module_names:
        return True
    current = os.getcwd()
    places = [place for place in sys.path if place not in ("", current)]
    if importlib.machinery.PathFinder.find_spec(name, places) is not None:
        return True
    others = (f for f in sys.meta_path if f is not importlib.machinery.PathFinder)
    return any(finder.find_spec(name, None) is not None for finder in others)
