"""The command line's overrides, read and judged all at once.

Hydra stops at the first wrong override and knows nothing of our types, so keys, group options and
syntax are checked here before it composes. Values are parsed by Hydra's own grammar, except text: a
field that holds text takes what the user typed, so that paths, patterns and names need no second
layer of quotes.
"""

from __future__ import annotations

import copy
import difflib
import os
import re
import shlex
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from launcher.config import suggest, typed, variants
from launcher.errors import Problem, did_you_mean, some_of

_FORM = re.compile(r"(?P<prefix>\+\+|\+|~)?(?P<key>[^=]*)(?P<assign>=(?P<value>.*))?", re.DOTALL)
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_KEY = re.compile(r"[A-Za-z_][\w\-]*(\.[\w\-]+)*")

#: stating one of a pair on the command line replaces the other one of a recipe.
EXCLUSIVE = {
    "batch.tokens": "batch.sequences",
    "batch.sequences": "batch.tokens",
    "train.steps": "train.epochs",
    "train.epochs": "train.steps",
}


@dataclass(slots=True)
class Overrides:
    """What a command line asks for: group choices, dotted values, and what is wrong."""

    groups: dict[str, str | None] = field(default_factory=dict)
    """Group -> chosen option; None for `experiment=null`."""
    values: dict[str, Any] = field(default_factory=dict)
    """Dotted key -> plain value, in the order given."""
    texts: dict[str, str] = field(default_factory=dict)
    """Group or dotted key -> the override as typed."""
    problems: list[Problem] = field(default_factory=list)
    """Everything that cannot be used."""


def read(words: Sequence[str], options: Mapping[str, Sequence[str]]) -> Overrides:
    """Sort override words into groups, values and problems; `options` as in `list_groups`."""
    result = Overrides()
    for word in words:
        problem = _read_one(word, options, result)
        if problem:
            result.problems.append(problem)
    return result


def apply(values: Mapping[str, Any], data: dict[str, Any]) -> None:
    """Set dotted `values` in nested `data`; mappings are merged, everything else is replaced."""
    for key, other in EXCLUSIVE.items():
        if values.get(key) is not None and other not in values:
            section, _, name = other.partition(".")
            data.setdefault(section, {})[name] = None
    for key, value in values.items():
        *parents, name = key.split(".")
        node = data
        for parent in parents:
            child = node.get(parent)
            node[parent] = node = child if isinstance(child, dict) else {}
        node[name] = merged(node.get(name), value)


def merged(old: Any, new: Any) -> Any:
    """`new` over `old`: mappings key by key, as new ones, anything else replaced."""
    if not isinstance(new, dict):
        return new
    known = old if isinstance(old, dict) else {}
    return {**known, **{key: merged(known.get(key), value) for key, value in new.items()}}


def _read_one(word: str, options: Mapping[str, Sequence[str]], out: Overrides) -> Problem | None:
    match = _FORM.fullmatch(word)
    assert match is not None  # every part of the pattern may be empty
    prefix, key, text = match["prefix"], match["key"].strip(), match["value"]
    if prefix == "~":
        hint = f"{key}=none" if "none" in options.get(key, ()) else "leave the override out"
        return Problem(word, "nothing can be deleted from the config", f"write {hint}")
    if match["assign"] is None:
        return Problem(word, "is not of the form key=value", _form_hint(word, options))
    if not _KEY.fullmatch(key):
        hint = "keys look like optim.lr, groups like engine; the form is key=value without spaces"
        return Problem(word, f"{key!r} is not a key", hint)
    if key in options:
        problem = _read_group(key, text, options, out)
    else:
        problem = _read_value(key, text, options, out)
    if problem is None and prefix:
        out.groups.pop(key, None)
        out.values.pop(key, None)
        return Problem(word, f"{prefix} is not needed here", f"write {key}={text}")
    if problem is None:
        out.texts[key] = word
    return problem


def _form_hint(word: str, options: Mapping[str, Sequence[str]]) -> str:
    homes = [group for group, names in options.items() if word in names]
    if homes:
        return f"did you mean {' or '.join(f'{group}={word}' for group in homes)}?"
    if os.path.exists(word):
        is_model = os.path.exists(os.path.join(word, "config.json"))
        key = "model.name" if is_model else "data.train"
        return f"did you mean {shlex.quote(f'{key}={word}')}?"
    close = difflib.get_close_matches(word, [*options, *typed.leaves()], n=1)
    return f"did you mean {close[0]}=...?" if close else "write key=value, e.g. optim.lr=1e-4"


def _read_group(
    group: str, text: str, options: Mapping[str, Sequence[str]], out: Overrides
) -> Problem | None:
    name = text.strip().strip("'\"")
    if name in options[group]:
        out.groups[group] = name
        return None
    if name in ("null", "") and group == "experiment":
        out.groups[group] = None
        return None
    hint = did_you_mean(name, list(options[group]))
    if group == "model" and ("/" in name or name.startswith(".")):
        hint = f"for a hub name or a folder write model.name={name}"
    elif "," in name:
        hint = "give one option"
    elif group == "data" and ("/" in name or "." in name):
        hint = f"for a data file write data.train={name}"
    return Problem(group, f"unknown option {name!r}", hint)


def _read_value(
    key: str, text: str, options: Mapping[str, Sequence[str]], out: Overrides
) -> Problem | None:
    leaves = typed.leaves()
    section = key.partition(".")[0]
    if section in options and section in variants.OPTIONS and key == typed.name_key(section):
        name = text.strip()
        hint = (
            f"write {section}={name}"
            if name in options[section]
            else did_you_mean(name, list(options[section]))
        )
        return Problem(key, f"is set by the group {section} (got {text!r})", hint)
    hint = leaves.get(key) or item_type(key)
    if hint is None:
        if key in typed.sections():
            inside = [name for name in leaves if name.startswith(f"{key}.")]
            return Problem(
                key, f"is a section (got {text!r})", f"set its keys: {some_of(inside, text)}"
            )
        near = difflib.get_close_matches(key, list(options), n=1, cutoff=0.7)
        if near and "." not in key:
            return Problem(key, "unknown group", f"did you mean {near[0]}={text}?")
        return suggest.unknown_key(key, text, leaves)
    value, problem = _value(key, text, hint)
    if problem is None:
        out.values.pop(key, None)  # the last of two wins, and also comes last
        out.values[key] = value
    return problem


def item_type(key: str) -> Any:
    """The item type of the free mapping that `key` (engine.extra.a.b) lies in, or None."""
    for parent, hint in typed.leaves().items():
        if typing.get_origin(hint) is dict and key.startswith(f"{parent}."):
            item = typing.get_args(hint)[1]
            deep = "." in key[len(parent) + 1 :]
            return None if deep and item is not Any else item
    return None


def _is_text(hint: Any) -> bool:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return str in typing.get_args(hint)
    return hint is str


def _value(key: str, text: str, kind: Any) -> tuple[Any, Problem | None]:
    """The plain value of `text` for a field of type `kind`, or the problem with it."""
    if _is_text(kind):
        if text == "null" and kind is not str:
            return None, None
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        return text[1:-1] if quoted else text, None
    if not text:
        return text, None
    if _INTEGER.fullmatch(text):
        return int(text), None  # as Hydra's grammar says, but that takes a millisecond
    from hydra.errors import HydraException

    try:
        parsed = _parsed(text)
    except HydraException as error:
        if text[0] not in "[{'\"":
            # A glob or a path that Hydra's grammar has no word for; its type is checked next.
            return text, None
        reason = str(error).splitlines()[0]
        hint = f"expected {typed.describe(kind)}; {_QUOTE}"
        return None, Problem(key, f"cannot read {text!r}: {reason}", hint)
    if parsed.is_sweep_override():
        hint = f"for a list write {key}=[{text}], for one run of each `launcher train -m`"
        return None, Problem(key, f"got several values: {text!r}", hint)
    return copy.deepcopy(parsed.value()), None


@lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    """Hydra's reading of a value, kept: the trials of a sweep say the same things."""
    return _parser().parse_override(f"key={text}")


@cache
def _parser() -> Any:
    """Hydra's parser of overrides; to make one costs more than a parse."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


_QUOTE = "inside [] and {} put text with spaces, commas or brackets in quotes"
