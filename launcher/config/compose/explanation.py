"""Where a config value comes from: schema default, which YAML file, or which override."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.compose import compose, overrides
from launcher.config.schema import conversion, suggestions, variants
from launcher.core.errors import ConfigError, Problem

_NOTHING = object()


@dataclass(frozen=True, slots=True)
class KeySource:
    """One place that sets a key: a file, an override or the schema, and the value it gives."""

    place: str
    value: Any


def explain(
    words: Sequence[str], key: str, config_dirs: Iterable[str | Path] = ()
) -> list[KeySource]:
    """Every place that sets `key`, in the order of merging: the last one holds.

    The first is the schema default. `key` is a dotted key, also inside a free mapping
    (`engine.extra.a`). Raises `ConfigError` for an unknown key and for wrong overrides.
    """
    sources = compose.Sources(config_dirs)
    asked = compose.ask(words, sources)
    config, problems = compose.try_compose(words, sources=sources)
    names = {section: getattr(config, section).name for section in variants.OWN_OPTIONS}
    known = {**conversion.leaves(), **conversion.own_leaves(names)}
    if conversion.written_type(key, known) is None:
        problems.append(_unknown(key, known))
    if problems:
        raise ConfigError(problems)
    found = _from_schema(conversion.to_dict(config), key)
    files = sources.layers(asked.groups)
    found += [KeySource(str(layer.file), layer.get(key)) for layer in files if layer.sets(key)]
    for own in asked.files:
        found += _given(key, own.values, {name: own.place(name) for name in own.values})
    typed_at = {name: f"override {asked.texts[name]}" for name in asked.values}
    found += _given(key, asked.values, typed_at)
    if key == "eval.metrics" and found[-1].value is None:
        found.append(KeySource(f"objective={config.objective.name}", config.eval.metrics))
    return found


def _given(key: str, values: Mapping[str, Any], places: Mapping[str, str]) -> list[KeySource]:
    """What dotted values say of a key, and what takes the place of the other one of a pair."""
    found = []
    other = overrides.EXCLUSIVE.get(key)
    for name, value in values.items():
        place = places[name]
        nested = (
            {name: value}
            if not name.startswith(f"{key}.")
            else {key: {name[len(key) + 1 :]: value}}
        )
        given = conversion.select(nested, key, _NOTHING)
        if given is not _NOTHING:
            found.append(KeySource(place, given))
        elif name == other and value is not None and key not in values:
            found.append(KeySource(f"{place} (replaces {key})", None))
    return found


def text(sources: Sequence[KeySource], key: str) -> str:
    """Lines for people: the value that holds and its place, then what it replaced."""
    last = sources[-1]
    lines = [f"{key} = {_show(last.value)}", f"  set by    {last.place}"]
    lines += [f"  replaces  {_show(s.value)} from {s.place}" for s in reversed(sources[:-1])]
    return "\n".join(lines)


def _show(value: Any) -> str:
    return json.dumps(value, default=str)


def _unknown(key: str, known: Iterable[str]) -> Problem:
    if key in conversion.sections():
        inside = [name for name in known if name.startswith(f"{key}.")]
        hint = f"name one of its keys: {', '.join(inside)}"
        return Problem(key, "is a section", hint)
    return suggestions.unknown_key(key, None, known)


def _from_schema(data: Mapping[str, Any], key: str) -> list[KeySource]:
    value = conversion.select(conversion.defaults(data), key, _NOTHING)
    if value is _NOTHING:  # inside a free mapping
        return []
    section = key.partition(".")[0]
    name = (
        conversion.select(data, conversion.name_key(section))
        if section in variants.OPTIONS
        else None
    )
    return [KeySource(f"schema default of {section}={name}" if name else "schema default", value)]
