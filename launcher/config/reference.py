"""docs/config.md, made from the schema's docstrings and the files of `conf/`.

`python -m launcher.config.reference [--check] [FILE]` writes it, or exits 1 if it is not current.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import sys
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from launcher.config import schema
from launcher.config.compose import groups
from launcher.config.schema import conversion, variants
from launcher.core import runtime

_HEAD = """\
# Configuration

*Made by `python -m launcher.config.reference` from `launcher/config/schema/` and `conf/`; do not
edit.*

A run is described by one typed config. `launcher train GROUP=OPTION KEY=VALUE ...` picks one option
of each group (a file in `conf/GROUP/`) and then sets single keys. Later layers win: defaults of the
schema, the chosen options, the experiment, the command line. `launcher config` prints the result,
and `launcher config --explain KEY` says which layer set a key.

- Unknown keys, unknown options, wrong types and impossible combinations end with exit code 2, all
  at once.
- Text is taken as typed: `eval.answer_pattern='#### (-?[0-9.,]+)'` needs the shell's quotes only.
  Lists are written `data.train=[a.jsonl,b.jsonl]`, mappings `data.columns={prompt: question}`,
  nothing `null`. Text wholly in quotes is what stands between them: `data.system='"null"'`.
- A value means the same in a file: `12.10`, `007` and `yes` are that in a field of text, and an
  empty `cluster.setup:` is an empty list. A file of your own, `launcher train my.yaml`, says its
  keys as `launcher config` prints them.
- `batch.tokens` and `batch.sequences`, and `train.steps` and `train.epochs`, exclude each other:
  giving one on the command line replaces the other one of a recipe.
- `${section.key}` takes the value of another key; `\\${` is the two characters themselves.
"""


@cache
def docstrings(cls: type) -> dict[str, str]:
    """Field name -> the string under it in the source of a config class (its own fields only)."""
    tree = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(tree, ast.ClassDef)
    found = {}
    for statement, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(statement, ast.AnnAssign) and isinstance(after, ast.Expr):
            value = after.value
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                assert isinstance(statement.target, ast.Name)
                found[statement.target.id] = " ".join(value.value.split())
    return found


def docstring(cls: type, name: str) -> str:
    """Documentation of a field, its own or the one it inherits."""
    for owner in cls.__mro__:
        if dataclasses.is_dataclass(owner) and name in docstrings(owner):
            return docstrings(owner)[name]
    return ""


def render() -> str:
    """The whole page."""
    parts = [_HEAD, _groups(), _section("", schema.Config, leaves_only=True)]
    for name, hint in conversion.fields(schema.Config).items():
        if dataclasses.is_dataclass(hint):
            parts += _sections(name, hint)
    return "\n".join(parts)


def _sections(path: str, declared: Any) -> list[str]:
    classes = conversion.section_classes(path, declared)
    first = _section(path, declared)
    others = [_section(path, cls, base=declared) for cls in classes if cls is not declared]
    nested = [
        part
        for name, hint in conversion.fields(declared).items()
        if dataclasses.is_dataclass(hint)
        for part in _sections(f"{path}.{name}", hint)
    ]
    return [first, *others, *nested]


def _section(path: str, cls: type, *, base: type | None = None, leaves_only: bool = False) -> str:
    """A heading and a table of one class; only what differs from `base`, if given."""
    title = path or "Top level"
    if base is not None:
        options = variants.OPTIONS[path]
        names = [name for name, other in options.items() if other is cls]
        title = f"{path} = {', '.join(names)}"
    lines = [f"## {title}", "", inspect.cleandoc(cls.__doc__ or ""), ""]
    rows = []
    for field in dataclasses.fields(cls):
        hint = conversion.fields(cls)[field.name]
        if dataclasses.is_dataclass(hint):
            continue
        is_own = field.name in cls.__dict__["__annotations__"]
        if base is not None and field.name in conversion.fields(base) and not is_own:
            continue
        if field.name == conversion.name_key(path).rpartition(".")[2] and base is not None:
            continue
        rows.append(
            _row(
                f"{path}.{field.name}".lstrip("."),
                _kind(cls, field.name),
                _default(field),
                docstring(cls, field.name),
            )
        )
    if not rows:
        return "\n".join([*lines[:3], ""])
    table = ["| key | type | default | meaning |", "|---|---|---|---|", *rows, ""]
    return "\n".join([*lines, *table])


def _kind(cls: type, name: str) -> str:
    kind, limit = (
        conversion.describe(conversion.fields(cls)[name]),
        conversion.limits(cls).get(name),
    )
    return kind if limit is None else f"{kind}, {limit}"


def _row(key: str, kind: str, default: Any, meaning: str) -> str:
    cells = [f"`{key}`", kind, f"`{json.dumps(default)}`", meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default.name if isinstance(field.default, Enum) else field.default


def _groups() -> str:
    lines = ["## Groups", "", "| group | option | what it is |", "|---|---|---|"]
    folder = runtime.conf_dir()
    for group, options in groups.options_in([folder]).items():
        for option in options:
            about = comment(folder / group / f"{option}.yaml")
            lines.append(f"| {group} | `{group}={option}` | {about} |")
    return "\n".join([*lines, ""])


def comment(file: Path) -> str:
    """The first sentence or line of the comment at the top of an option's file, "" without one."""
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        text = line.lstrip("# ").strip()
        if text and not text.startswith("@package"):
            return text.rstrip(":").replace("|", "\\|")
    return ""


def main(arguments: list[str]) -> int:
    """Write the page, or compare it with `--check`."""
    check = "--check" in arguments
    paths = [argument for argument in arguments if argument != "--check"]
    file = Path(paths[0] if paths else "docs/config.md")
    if not check:
        file.write_text(render(), encoding="utf-8")
        return 0
    current = file.is_file() and file.read_text(encoding="utf-8") == render()
    if not current:
        print(f"{file} is not current: run python -m launcher.config.reference", file=sys.stderr)
    return 0 if current else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
