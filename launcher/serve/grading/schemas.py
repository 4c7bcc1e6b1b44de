"""JSON Schemas of clients. Their patterns may take any time: only `worker` tries them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from launcher.core.errors import ConfigError, Problem
from launcher.core.registry import need
from launcher.graders.members import require_small

#: Members by which one schema refers to another.
_REFERRING = ("$ref", "$dynamicRef", "$recursiveRef", "$schema")
_META = "json-schema.org/"
_LONGEST = 300


class Schema:
    """What items have to look like."""

    def __init__(self, wire: dict[str, Any], where: str) -> None:
        """Read a schema; `ConfigError` for one that is none, or that refers to one elsewhere."""
        library: Any = need("jsonschema", "items of evals need", where=where, extra="serve")
        registry: Any = need("referencing", "items of evals need", where=where, extra="serve")
        require_small(wire, where)
        if problems := [*_elsewhere(wire, where)]:
            raise ConfigError(problems)
        kind = library.validators.validator_for(wire, library.Draft202012Validator)
        try:
            kind.check_schema(wire)
        except library.SchemaError as error:
            path = "".join(f".{step}" for step in error.absolute_path)
            hint = "see json-schema.org for what it may say"
            raise ConfigError(error.message[:_LONGEST], where=where + path, hint=hint) from error
        # Without what would fetch schemas from their addresses.
        self._validator = kind(wire, registry=registry.Registry())
        self._wrong = (registry.exceptions.Unresolvable, library.exceptions.UnknownType)

    def misfit(self, item: Any) -> str:
        """What does not fit, with its place; empty if all does."""
        try:
            error = next(self._validator.iter_errors(item), None)
        except (ArithmeticError, ValueError, RecursionError, re.error, *self._wrong) as fault:
            return f"the schema cannot be applied: {type(fault).__name__}"
        if error is None:
            return ""
        return f"item{error.json_path.removeprefix('$')}: {error.message}"[:_LONGEST]


def _elsewhere(value: Any, where: str) -> Iterator[Problem]:
    if isinstance(value, list):
        for number, one in enumerate(value):
            yield from _elsewhere(one, f"{where}[{number}]")
    elif isinstance(value, dict):
        for name, one in value.items():
            if name in _REFERRING and isinstance(one, str) and not _is_known(name, one):
                hint = "put it below $defs, and refer to it by #/$defs/NAME"
                found = f"{one[:100]!r} is not in this schema"
                yield Problem(f"{where}.{name}", found, hint)
            else:
                yield from _elsewhere(one, f"{where}.{name}")


def _is_known(name: str, reference: str) -> bool:
    return _META in reference if name == "$schema" else reference.startswith("#")
