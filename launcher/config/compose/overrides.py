"""The command line's overrides, read and judged all at once.

Hydra stops at the first wrong override and knows nothing of our types, so keys, group options and
syntax are checked here before it composes. Values are read by `values`: a field that holds text
takes what the user typed, so that paths, patterns and names need no second layer of quotes.
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from launcher.config.schema import conversion, suggestions, values, variants
from launcher.config.schema.values import Word
from launcher.core.errors import Problem, did_you_mean, some_of

_FORM = re.compile(r"(?P<prefix>\+\+|\+|~)?(?P<key>[^=]*)(?P<assign>=(?P<value>.*))?", re.DOTALL)
_KEY = re.compile(r"[A-Za-z_][\w\-]*(\.[\w\-]+)*")

#: stating one of a pair on the command line replaces the other one of a recipe.
EXCLUSIVE = {
    "batch.tokens": "batch.sequences",
    "batch.sequences": "batch.tokens",
    "train.steps": "train.epochs",
    "train.epochs": "train.steps",
    "eval.every_steps": "eval.times",
    "eval.times": "eval.every_steps",
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
    own: set[str] = field(default_factory=set)
    """Sections whose class may be in a file of the user's."""
    problems: list[Problem] = field(default_factory=list)
    """Everything that cannot be used."""


def read(
    words: Sequence[str], options: Mapping[str, Sequence[str]], own: Iterable[str] = ()
) -> Overrides:
    """Sort override words into groups, values and problems; `options` as in `list_groups`.

    `own` are sections whose class is in a file of the user's: which keys they have is known later.
    """
    result = Overrides(own={*own})
    for section in variants.OWN_OPTIONS:
        elsewhere = {*options.get(section, ())} - {*variants.OPTIONS[section]}
        if elsewhere or any(word.startswith(f"{section}.name=") for word in words):
            result.own.add(section)
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
    try:
        word.encode()
    except UnicodeEncodeError:  # bytes of the command line that are no UTF-8
        hint = "type it in UTF-8; see the terminal's encoding"
        return Problem(ascii(word)[1:-1], "is not text in UTF-8", hint)
    match = _FORM.fullmatch(word)
    assert match is not None  # every part of the pattern may be empty
    prefix, key, text = match["prefix"], match["key"].strip(), match["value"]
    if prefix == "~":
        has_none = "none" in options.get(key, ())
        hint = f"write {key}=none" if has_none else "leave the override out"
        return Problem(word, "nothing can be deleted from the config", hint)
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
    close = difflib.get_close_matches(word, [*options, *conversion.leaves()], n=1)
    return f"did you mean {close[0]}=...?" if close else "write key=value, e.g. optim.lr=1e-4"


def _read_group(
    group: str, text: str, options: Mapping[str, Sequence[str]], out: Overrides
) -> Problem | None:
    name = text.strip()
    name = values.unquoted(name) or name
    if name in options[group]:
        out.groups[group] = name
        return None
    if name in ("null", "") and group == "experiment":
        out.groups[group] = None
        return None
    return unknown_option(group, name, options)


def unknown_option(group: str, name: str, options: Mapping[str, Sequence[str]]) -> Problem:
    """The problem of a name that no option of a group has."""
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
    section = key.partition(".")[0]
    if section in options and section in variants.OPTIONS and key == conversion.name_key(section):
        name = text.strip()
        if section in variants.OWN_OPTIONS and name.endswith(".py"):
            out.values[key] = values.unquoted(name) or name
            return None
        hint = (
            f"write {section}={name}"
            if name in options[section]
            else did_you_mean(name, list(options[section]))
        )
        return Problem(key, f"is set by the group {section} (got {text!r})", hint)
    kind = conversion.written_type(key)
    if kind is None and section in out.own and "." in key:
        kind = Any
    if kind is None:
        return unknown(key, text, options)
    value, problem = _value(key, text, kind)
    if problem is None:
        out.values.pop(key, None)  # the last of two wins, and also comes last
        out.values[key] = value
    return problem


def unknown(key: str, text: Any, options: Iterable[str], form: str = "{group}={text}") -> Problem:
    """The problem of a key that is none, or that of a whole section; `form` is how it is written
    where it stands."""
    if key in conversion.sections():
        inside = [name for name in conversion.leaves() if name.startswith(f"{key}.")]
        return Problem(
            key, f"is a section (got {text!r})", f"set its keys: {some_of(inside, str(text))}"
        )
    near = difflib.get_close_matches(key, list(options), n=1, cutoff=0.7)
    if near and "." not in key:
        return Problem(
            key, "unknown group", f"did you mean {form.format(group=near[0], text=text)}?"
        )
    return suggestions.unknown_key(key, text, conversion.leaves())


def _value(key: str, text: str, kind: Any) -> tuple[Any, Problem | None]:
    """The plain value of `text` for a field of type `kind`, or the problem with it."""
    if values.required(kind) is str:
        inner = values.unquoted(text)
        return values.plain(Word(text) if inner is None else Word(inner, is_text=True), kind), None
    is_call = values.function(text) is not None
    called, is_sweep = _called(text) if is_call else (None, _is_list(text))
    if is_sweep:
        hint = f"for a list write {key}=[{text}], for one run of each `launcher train -m`"
        return None, Problem(key, f"got several values: {text!r}", hint)
    try:
        return called if is_call else values.plain(values.parse(text), kind), None
    except ValueError as error:
        hint = f"expected {conversion.describe(kind)}; {_QUOTE}"
        return None, Problem(key, f"cannot read {text!r}: {error}", hint)


def _is_list(text: str) -> bool:
    """Whether commas make several values of it."""
    try:
        return len(values.parts(text)) > 1
    except ValueError:  # a path or a pattern, or brackets that are complained of later
        return False


@lru_cache(maxsize=256)
def _called(text: str) -> tuple[Any, bool]:
    """What one of Hydra's functions makes of its values, and whether that is a sweep."""
    from hydra.errors import HydraException

    try:
        parsed = _parser().parse_override(f"key={text}")
        return (None, True) if parsed.is_sweep_override() else (parsed.value(), False)
    except HydraException:  # its type is checked next
        return text, False


@cache
def _parser() -> Any:
    from launcher.config.compose import hydra

    return hydra.parser()


_QUOTE = "inside [] and {} put text with spaces, commas or brackets in quotes"
