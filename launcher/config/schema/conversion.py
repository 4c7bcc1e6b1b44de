"""Plain mappings to config dataclasses and back: every key and every type is checked, all at once.

Standard library only. `variants.OPTIONS` says which class a section has, by the section's name
field.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any

from launcher.config import schema
from launcher.config.schema import ranges, suggestions, values, variants
from launcher.config.schema.ranges import Range
from launcher.core import owncode
from launcher.core.errors import ConfigError, Problem, did_you_mean

TRUE = ("true", "yes", "on")
FALSE = ("false", "no", "off")


@cache
def _declared(cls: type) -> dict[str, tuple[Any, Range | None]]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: ranges.split(hints[field.name]) for field in dataclasses.fields(cls)}


@cache
def fields(cls: type) -> dict[str, Any]:
    """Field name -> type of a config class, in the order of declaration."""
    return {name: hint for name, (hint, _) in _declared(cls).items()}


@cache
def limits(cls: type) -> dict[str, Range]:
    """Field name -> what its numbers must lie in, for the fields of a config class that say it."""
    return {name: limit for name, (_, limit) in _declared(cls).items() if limit is not None}


@cache
def leaves() -> dict[str, Any]:
    """Every dotted key of every variant -> its type (sections themselves are not in it)."""
    found: dict[str, Any] = {}
    _walk(schema.Config, "", found)
    return found


def _walk(cls: type, path: str, found: dict[str, Any]) -> None:
    for name, hint in fields(cls).items():
        here = f"{path}.{name}" if path else name
        if dataclasses.is_dataclass(hint):
            for variant in section_classes(here, typing.cast(type, hint)):
                _walk(variant, here, found)
        else:
            found.setdefault(here, hint)


def own_leaves(names: Mapping[str, str]) -> dict[str, Any]:
    """Dotted key -> type of the options in Python files of the user's; `names` is section -> name
    of its variant, and those that are no files add none. `ConfigError` for a file that is none."""
    found: dict[str, Any] = {}
    for section, own in variants.OWN_OPTIONS.items():
        name = names.get(section, "")
        if name.endswith(".py"):
            cls, problems = fields(schema.Config)[section], list[Problem]()
            if found_cls := _own_variant(cls, name, own, name_key(section), problems):
                _walk(found_cls, section, found)
            if problems:
                raise ConfigError(problems)
    return found


@cache
def sections() -> frozenset[str]:
    """Dotted paths of all sections: `model`, `track.wandb`, ..."""
    return frozenset(
        key[:i] for key in leaves() for i, character in enumerate(key) if character == "."
    )


def section_classes(path: str, declared: type) -> list[type]:
    """The classes that a section can have, without repetition."""
    options = variants.OPTIONS.get(path)
    return list(dict.fromkeys(options.values())) if options else [declared]


def owners(key: str) -> list[str]:
    """The options of a section that know `key`: `peft.rank` -> ["lora"]; [] if none or all one
    class."""
    section, _, name = key.partition(".")
    return [
        option for option, cls in variants.OPTIONS.get(section, {}).items() if name in fields(cls)
    ]


def name_key(section: str) -> str:
    """Dotted key of the field that names a section's variant."""
    return f"{section}.{variants.NAME_FIELD.get(section, 'name')}"


def build(data: Mapping[str, Any]) -> tuple[schema.Config, list[Problem]]:
    """A `Config` from nested plain data, and every problem found.

    Where a value is wrong or unknown the default stands in for it, so that the result can still be
    checked.
    """
    problems: list[Problem] = []
    config = _section(schema.Config, data, "", problems)
    assert isinstance(config, schema.Config)
    return config, problems


def objective(data: Mapping[str, Any]) -> schema.ObjectiveConfig:
    """The section `objective` from plain data; `ConfigError` for what is wrong in it."""
    problems: list[Problem] = []
    made: schema.ObjectiveConfig = _section(schema.ObjectiveConfig, data, "objective", problems)
    if problems:
        raise ConfigError(problems)
    return made


def defaults(data: Mapping[str, Any]) -> dict[str, Any]:
    """All default values of the variants that `data` selects, as nested plain data."""
    chosen = {
        section: {key: data[section][key]}
        for section in variants.OPTIONS
        if (key := variants.NAME_FIELD.get(section, "name"))
        and isinstance(data.get(section), Mapping)
        and key in data[section]
    }
    return to_dict(build(chosen)[0])


def to_dict(config: Any) -> dict[str, Any]:
    """Nested plain data of a config object; enums become their names."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


#: What says where a model that grades is, and how it is asked there.
_OF_ENDPOINTS = ("url", "key_variable", "extra")


def for_others(data: Mapping[str, Any]) -> dict[str, Any]:
    """A config as plain data for pages and trackers, which others see than those who run it:
    without where models that grade are, and what their keys are called."""
    found = copy.deepcopy(dict(data))
    options = found.get("eval")
    if isinstance(options, dict):
        endpoints = options.get("endpoints")
        named = endpoints.values() if isinstance(endpoints, dict) else ()
        for members in (own for own in named if isinstance(own, dict)):
            members.pop("model", None)  # each is called by another name already
        for members in (own for own in (options.get("judge"), *named) if isinstance(own, dict)):
            for name in _OF_ENDPOINTS:
                members.pop(name, None)
    return found


def is_for_others(word: str) -> bool:
    """Whether an override says nothing that `for_others` leaves out."""
    key, _, value = word.lstrip("+~").partition("=")
    hidden = ("eval.judge", *(f"eval.judge.{name}" for name in _OF_ENDPOINTS))
    if key in hidden or (key == "eval" and value.startswith("{")):
        return False
    return not key.startswith(("eval.endpoints", "eval.judge.extra."))


_SCALARS = (str, int, float, type(None))


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, Enum):
        return value.name
    return value if isinstance(value, _SCALARS) else copy.deepcopy(value)


def _section(cls: type, data: Any, path: str, problems: list[Problem]) -> Any:
    if not isinstance(data, Mapping):
        if data is not None:
            hint = f"set its keys, e.g. {path}.{next(iter(fields(cls)))}=..."
            problems.append(Problem(path, f"is a section, got {data!r}", hint))
        return cls()
    own = _variant(cls, data, path, problems)
    if own is None:  # of what cannot be read nothing can be said
        return cls()
    cls = own
    known = fields(cls)
    values: dict[str, Any] = {}
    for name, value in data.items():
        here = f"{path}.{name}" if path else str(name)
        if name not in known:
            problems.append(suggestions.unknown_key(here, value, leaves(), owners(here)))
        elif dataclasses.is_dataclass(known[name]):
            values[name] = _section(typing.cast(type, known[name]), value, here, problems)
        else:
            try:
                values[name] = convert(known[name], value)
            except ValueError as error:
                problems.append(Problem(here, *error.args))
    return cls(**values)


def _variant(cls: type, data: Mapping[str, Any], path: str, problems: list[Problem]) -> type | None:
    options = variants.OPTIONS.get(path)
    if not options:
        return cls
    key = name_key(path)
    name = data.get(key.rpartition(".")[2])
    if name is None:
        return cls
    own = variants.OWN_OPTIONS.get(path)
    if own and isinstance(name, str) and name.endswith(".py"):
        return _own_variant(cls, name, own, key, problems)
    if not isinstance(name, str) or name not in options:
        problems.append(Problem(key, f"unknown name {name!r}", did_you_mean(str(name), options)))
        return cls
    return options[name]


def _own_variant(cls: type, name: str, own: str, key: str, problems: list[Problem]) -> type | None:
    """The options class of a user's own file, a subclass of `cls`; None if there is none."""
    try:
        found = owncode.load(name, own, where=key)
    except ConfigError as error:
        problems += error.problems
        return None
    if isinstance(found, type) and issubclass(found, cls) and dataclasses.is_dataclass(found):
        return found
    hint = f"write `@dataclass(kw_only=True, slots=True) class {own}({cls.__name__})`"
    problems.append(Problem(key, f"{own} in {name} is no dataclass of options", hint))
    return None


def convert(hint: Any, value: Any) -> Any:
    """`value` as type `hint`; `ValueError(found, hint)` if it is of another type."""
    if hint is Any:
        return copy.deepcopy(value)
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _one_of(hint, value)
    if origin is list:  # null, as YAML has it behind a key alone, says: nothing in it
        return [] if value is None else _list(typing.get_args(hint)[0], value)
    if origin is dict:
        return {} if value is None else _dict(typing.get_args(hint)[1], value)
    if value is None:
        raise ValueError(
            f"expected {describe(hint)}, got null", "give a value, or leave the key out"
        )
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enum(hint, value)
    return {bool: _bool, int: _int, float: _float, str: _str}[hint](value)


def _without_null(hint: Any) -> list[Any]:
    """The types of a union but for that of null: one, and enums whose names may stand for it."""
    return [arg for arg in typing.get_args(hint) if arg is not types.NoneType]


def _one_of(hint: Any, value: Any) -> Any:
    first, *words = _without_null(hint)
    for word in words:
        if isinstance(value, word) or (isinstance(value, str) and value in word.__members__):
            return _enum(word, value)
    try:
        return convert(first, value)
    except ValueError as error:
        if not words:
            raise
        names = [name for word in words for name in word.__members__]
        found, tip = error.args
        expected = " or ".join([describe(first), *names])
        raise ValueError(
            found.replace(describe(first), expected), " or ".join([tip, *names])
        ) from None


#: Keys of any type whose words are names: files, hub names, names of layers.
SOURCES = (
    "data.train",
    "data.validation",
    "eval.general",
    "peft.targets",
    "data.report.benchmarks",
)


def written_type(key: str, known: Mapping[str, Any] | None = None) -> Any:
    """How values of a dotted key are to be read (see `values.plain`); None for an unknown key.
    `known` are other keys than `leaves`."""
    known = leaves() if known is None else known
    hint = known.get(key)
    if hint is not None:
        if key == "eval.new":
            return dict[str, values.Source]
        return values.Source if key in SOURCES else hint
    for parent in known:
        if not key.startswith(f"{parent}."):
            continue
        inner = written_type(parent, known)
        if typing.get_origin(inner) is not dict:
            continue
        item = typing.get_args(inner)[1]
        *between, name = key[len(parent) + 1 :].split(".")
        if not between:
            return item
        if item is values.Source:
            return values.of_key(item, name) if len(between) == 1 else str
        return Any if item is Any else None
    return None


def select(data: Any, key: str, default: Any = None) -> Any:
    """The value at a dotted key of nested mappings whose own keys may hold dots."""
    if not isinstance(data, Mapping):
        return default
    if key in data:
        return data[key]
    for name, value in data.items():
        if key.startswith(f"{name}."):
            return select(value, key[len(str(name)) + 1 :], default)
    return default


def describe(hint: Any) -> str:
    """A type in words for people: `a whole number`, `one of: auto, fp32`."""
    origin = typing.get_origin(hint)
    if hint is Any or hint is values.Source:
        return "any value"
    if origin in (types.UnionType, typing.Union):
        first, *words = _without_null(hint)
        names = [name for word in words for name in word.__members__]
        return " or ".join([describe(first), *names, "null"])
    if origin is list:
        return "a list"
    if origin is dict:
        return "a mapping"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return f"one of: {', '.join(hint.__members__)}"
    return {bool: "true or false", int: "a whole number", float: "a number", str: "text"}[hint]


def _wrong(expected: str, value: Any, hint: str = "") -> ValueError:
    return ValueError(f"expected {expected}, got {value!r}", hint)


def _list(item: Any, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise _wrong("a list", value, f"write [{value}]")
    return [convert(item, element) for element in value]


def _dict(item: Any, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise _wrong("a mapping", value, "write {name: value}, in a shell within quotes")
    return {str(key): convert(item, element) for key, element in value.items()}


def _enum(cls: type[Enum], value: Any) -> Enum:
    if isinstance(value, cls):
        return value
    if isinstance(value, str) and value in cls.__members__:
        return cls[value]
    raise ValueError(f"unknown value {value!r}", did_you_mean(str(value), list(cls.__members__)))


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in TRUE + FALSE:
        return value.lower() in TRUE
    raise _wrong("true or false", value, "write true or false")


def _int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return int(value)
        with contextlib.suppress(ValueError):  # 1e3 is one, whichever way it came
            if float(value).is_integer():
                return int(float(value))
    raise _wrong("a whole number", value, "write digits only, e.g. 8")


def _float(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            pass
    raise _wrong("a number", value, "write a number, e.g. 0.1 or 2e-5")


def _str(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise _wrong("text", value, "put it in quotes")
