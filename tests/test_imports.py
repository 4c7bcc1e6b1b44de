"""The control plane answers at once because it never imports what the run plane needs."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from support.ranks import environment

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "launcher"

CONTROL = (
    "ab",
    "bases",
    "cli",
    "config",
    "console",
    "doctor",
    "errors",
    "fingerprint",
    "host",
    "jobs",
    "jsontext",
    "launch",
    "listen",
    "meanings",
    "processes",
    "ranks",
    "registry",
    "report",
    "rundir",
    "runtime",
    "stories",
    "streams",
    "sweeps",
    "vitals",
)

RUN_LIBRARIES = {
    "datasets",
    "deepspeed",
    "numpy",
    "pandas",
    "peft",
    "pyarrow",
    "tokenizers",
    "torch",
    "transformers",
    "wandb",
}
VERB_LIBRARIES = {"hydra", "jinja2", "omegaconf", "rich", "yaml"}

# Imports one module after the other and says which top-level packages each has added.
PROBE = """
import importlib, json, sys
added = {}
for name in sys.argv[1:]:
    before = set(sys.modules)
    importlib.import_module(name)
    added[name] = sorted({new.partition(".")[0] for new in set(sys.modules) - before})
print(json.dumps(added))
"""


def _control_modules() -> list[str]:
    files = [path for path in PACKAGE.rglob("*.py") if path.name != "__main__.py"]
    names = []
    for path in files:
        parts = path.relative_to(ROOT).with_suffix("").parts
        if len(parts) > 1 and parts[1] in CONTROL:
            names.append(".".join(part for part in parts if part != "__init__"))
    return sorted(names)


def _added(*modules: str) -> dict[str, list[str]]:
    result = subprocess.run(
        [sys.executable, "-c", PROBE, *modules],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    added: dict[str, list[str]] = json.loads(result.stdout.splitlines()[-1])
    return added


def test_every_control_module_exists() -> None:
    tops = {name.split(".")[1] for name in _control_modules()}
    assert tops == set(CONTROL)


def test_control_modules_load_no_run_library() -> None:
    heavy = {
        name: sorted(RUN_LIBRARIES & set(packages))
        for name, packages in _added(*_control_modules()).items()
    }
    assert {name: packages for name, packages in heavy.items() if packages} == {}


def test_the_probe_sees_a_heavy_import() -> None:
    assert "numpy" in _added("numpy")["numpy"]


def test_the_command_line_loads_no_library_before_its_verb() -> None:
    assert set(_added("launcher.cli")["launcher.cli"]) & (RUN_LIBRARIES | VERB_LIBRARIES) == set()


def test_import_contracts_hold() -> None:
    command = Path(sysconfig.get_path("scripts")) / "lint-imports"
    if not command.exists():
        pytest.fail("import-linter is not installed: make install")
    result = subprocess.run(
        [command, "--config", ROOT / "pyproject.toml", "--no-cache", "--no-logo"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stdout + result.stderr


# ---- cycles


def test_no_module_needs_itself() -> None:
    """Nor by an import inside a function, or one for types: who reads one file of a cycle has to
    read them all."""
    assert list(_cycles(_graph(PACKAGE))) == []


def test_cycles_are_found_wherever_the_import_stands(tmp_path: Path) -> None:
    package = tmp_path / "package"
    for name, text in {
        "__init__": "",
        "a": "def f():\n    from package import b",
        "b": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .sub.c import name",
        "sub/__init__": "",
        "sub/c": "import package.a",
        "sub/d": "from . import c\nfrom ..sub import e",
        "sub/e": "import os, json",
    }.items():
        path = package / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    assert list(_cycles(_graph(package))) == [["package.a", "package.b", "package.sub.c"]]


def _graph(package: Path) -> dict[str, set[str]]:
    """Module -> modules of the same package that it names in an import anywhere in its file."""
    files = {_module(path, package.parent): path for path in package.rglob("*.py")}
    return {name: set(_imported(name, path, files)) for name, path in files.items()}


def _module(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def _imported(name: str, path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    package = name.split(".") if path.stem == "__init__" else name.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            inside = [f"{source}.{alias.name}" for alias in node.names]
            named = [full if full in files else source for full in inside]
        else:
            continue
        yield from (found for found in named if found in files and found != name)


def _cycles(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Groups of modules each of which needs all the others: strongly connected components."""
    reached = {name: _reached(graph, name) for name in graph}
    seen: set[str] = set()
    for name in sorted(graph):
        if name in reached[name] and name not in seen:
            group = sorted(other for other in reached[name] if name in reached[other])
            seen.update(group)
            yield group


def _reached(graph: Mapping[str, set[str]], start: str) -> set[str]:
    found: set[str] = set()
    left = [start]
    while left:
        new = graph[left.pop()] - found
        found |= new
        left += new
    return found
