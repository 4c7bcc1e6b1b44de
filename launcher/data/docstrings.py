"""Text of one domain that every machine has: the docstrings of Python's standard library.

They are read from its source files, which are parsed and not imported. A file belongs to validation
or to train as a whole, so that held-out texts are of other modules than those trained on.
"""

from __future__ import annotations

import ast
import hashlib
import random
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher.core.errors import DataError

HELD_OUT_PERCENT = 10
#: Folders and files that are no library: tests, tools, installed packages.
_LEFT_OUT = re.compile(r"(^|/)(site-packages|dist-packages|test|tests|idlelib|lib2to3|turtledemo)/")
#: Characters of a docstring that is worth reading, and of what is kept of a long one.
_SHORTEST, _LONGEST = 60, 1200
_SUMMARY = range(20, 161)
_Documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def texts(rng: random.Random, *, held_out: bool) -> Iterator[dict[str, Any]]:
    """{"text": name and docstring}, in random order; no docstring comes twice."""
    for name, text in _shuffled(rng, held_out=held_out):
        yield {"text": f"{name}\n\n{text[:_LONGEST]}"}


def questions(rng: random.Random, *, held_out: bool) -> Iterator[dict[str, Any]]:
    """What does NAME do? Answered by the first sentence of its docstring."""
    for name, text in _shuffled(rng, held_out=held_out):
        summary = " ".join(re.split(r"\n\s*\n", text)[0].split())
        if len(summary) in _SUMMARY and summary.endswith("."):
            turns = (("user", f"What does {name} do?"), ("assistant", summary))
            yield {"messages": [{"role": role, "content": content} for role, content in turns]}


def _shuffled(rng: random.Random, *, held_out: bool) -> list[tuple[str, str]]:
    """(dotted name, docstring) of one side of the split."""
    root = Path(sysconfig.get_path("stdlib"))
    found: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        place = path.relative_to(root).as_posix()
        digest = hashlib.blake2b(place.encode(), digest_size=8).digest()
        mine = (int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT) == held_out
        if mine and not _LEFT_OUT.search(place):
            module = place.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            found |= {text: name for name, text in _docstrings(path, module)}
    if not found:
        raise DataError(
            f"there are no Python sources in {root}",
            where="builtin:docstrings",
            hint="use a Python that has its standard library as source files",
        )
    named = [(name, text) for text, name in found.items()]
    rng.shuffle(named)
    return named


def _docstrings(path: Path, module: str) -> Iterator[tuple[str, str]]:
    """Dotted names and docstrings of a source file; nothing of one that does not parse."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # a file of another age has its own ways with backslashes
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):
        return
    nodes: list[tuple[str, ast.AST]] = [(module, tree)]
    while nodes:
        name, node = nodes.pop()
        if isinstance(node, _Documented):
            text = ast.get_docstring(node) or ""
            if len(text) >= _SHORTEST:
                yield name, text
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                nodes.append((f"{name}.{child.name}", child))
