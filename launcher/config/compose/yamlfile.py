"""YAML files as they were written: scalars keep their text, and keys know their line.

YAML would make 12.1 of `12.10`, 7 of `007` and true of `yes` before anything knows what the field
is; here that is decided by the field's type (see `values`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from launcher.config.schema import conversion, values
from launcher.config.schema.values import Node, Word
from launcher.core.errors import ConfigError

_PLAIN = "!plain"
_TEXT, _MERGE = "tag:yaml.org,2002:str", "<<"
_SCALARS = tuple(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "bool", "null"))
_NULLS = ("", "~", "null", "Null", "NULL")


class Lined(dict[str, Node]):
    """A mapping of a file: its values, and the line of each key."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}


def read(path: Path, shown: str) -> Lined:
    """The mapping in a file; `{}` if it is empty. `shown` is its name in messages.

    Raises `ConfigError` with file:line for what is not YAML, or no mapping.
    """
    import yaml

    hint = "the form is `key: value`, keys below a section are indented"
    try:
        root = yaml.compose(path.read_bytes(), Loader=_loader())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = shown if mark is None else f"{shown}:{mark.line + 1}"
        reason = ", ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"is not YAML: {reason}", where=where, hint=hint) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"is not YAML: {reason}", where=shown, hint=hint) from error
    if root is None or (root.tag == _PLAIN and root.value in _NULLS):
        return Lined()
    found = _node(root, shown, ())
    if not isinstance(found, Lined):
        line = root.start_mark.line + 1
        raise ConfigError("holds no mapping", where=f"{shown}:{line}", hint=hint)
    return found


@cache
def _loader() -> Any:
    """The parser with no opinion on what bare scalars are."""
    import yaml

    class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
        yaml_implicit_resolvers: dict[Any, Any] = {}

    Loader.add_implicit_resolver(_PLAIN, re.compile(r".*", re.DOTALL), None)
    return Loader


def _node(node: Any, shown: str, above: tuple[int, ...]) -> Node:
    def refused(found: str, hint: str) -> ConfigError:
        return ConfigError(found, where=f"{shown}:{node.start_mark.line + 1}", hint=hint)

    if id(node) in above:
        raise refused("a value that holds itself", "write it out instead of the alias")
    above = (*above, id(node))
    if node.id == "scalar":
        if node.tag not in (_PLAIN, _TEXT, *_SCALARS):
            raise refused(f"the tag {node.tag} is not known", "leave the tag out")
        if node.tag != _TEXT and node.value in _NULLS:
            return None
        return Word(node.value, is_text=node.tag == _TEXT)
    if node.id == "sequence":
        return [_node(item, shown, above) for item in node.value]
    found, merged = Lined(), Lined()
    for key_node, value_node in node.value:
        if key_node.id != "scalar":
            raise refused("a key that is no text", "write key: value")
        key, value = key_node.value, _node(value_node, shown, above)
        if key == _MERGE and key_node.tag == _PLAIN:
            _merge(merged, value)
            continue
        if key in found:
            found_at = f"{key!r} is given twice, in line {found.lines[key]} too"
            where = f"{shown}:{key_node.start_mark.line + 1}"
            raise ConfigError(found_at, where=where, hint="leave one of the two out")
        found[key] = value
        found.lines[key] = key_node.start_mark.line + 1
    for key in merged:
        if key not in found:
            found[key], found.lines[key] = merged[key], merged.lines[key]
    return found


def _merge(into: Lined, value: Node) -> None:
    """What `<<: *base` or `<<: [*one, *two]` adds; the first that gives a key counts."""
    for mapping in value if isinstance(value, list) else [value]:
        if isinstance(mapping, Lined):
            for key in mapping:
                if key not in into:
                    into[key], into.lines[key] = mapping[key], mapping.lines[key]


def content(tree: Mapping[str, Node], path: str = "") -> tuple[dict[str, Any], dict[str, int]]:
    """Plain nested data below the dotted `path`, read by the types of its keys, and key -> line.

    A section with nothing in it says nothing.
    """
    data: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key, node in tree.items():
        here = f"{path}.{key}" if path else key
        if isinstance(tree, Lined):
            lines[here] = tree.lines[key]
        if here in conversion.sections():
            if node is None:
                continue
            if isinstance(node, dict):
                data[key], below = content(node, here)
                lines |= below
                continue
        hint = conversion.written_type(here)
        data[key] = values.plain(node, Any if hint is None else hint)
        lines |= _lines(node, here)
    return data, lines


def _lines(node: Node, path: str) -> dict[str, int]:
    """The lines of the keys inside a free mapping."""
    found: dict[str, int] = {}
    if isinstance(node, Lined):
        for key, inner in node.items():
            found |= {f"{path}.{key}": node.lines[key], **_lines(inner, f"{path}.{key}")}
    return found
