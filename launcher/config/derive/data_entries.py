"""What `data.train`, `data.validation` and further held-out sets name: paths as they are, or
mappings of a mixture.

A split is called train, validation, general (`eval.general`) or new.NAME (`eval.new`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from launcher.config.schema import Config, DataConfig
from launcher.config.schema.variants import FORMATS, metrics_of
from launcher.core.errors import ConfigError, Problem, did_you_mean

#: Types that the values of a mapping may have.
_KEYS: dict[str, tuple[type, ...]] = {
    "path": (str,),
    "name": (str,),
    "weight": (int, float),
    "epochs": (int, float),
    "format": (str,),
    "columns": (dict,),
    "limit": (int,),
    "revision": (str,),
}
_FORMS = "a path, a glob, a folder, a URL, a hub name, builtin:NAME, or a list of these"


@dataclass(frozen=True, slots=True)
class DataEntry:
    """One entry of a list of sources; what it leaves out is that of the `data` section."""

    path: str
    name: str
    format: str
    columns: dict[str, str] = field(default_factory=dict)
    limit: int | None = None
    revision: str | None = None
    weight: float | None = None
    """Share of the packs, relative to the other sources'."""
    epochs: float | None = None
    """How often the source is gone through in one epoch of the mixture."""


def splits(config: Config) -> list[str]:
    """The splits that are given, train first; further sets only where metrics are asked for."""
    found = ["train"] + (["validation"] if config.data.validation is not None else [])
    if metrics_of(config):
        found += ["general"] if config.eval.general is not None else []
        found += [f"new.{name}" for name in config.eval.new]
    return found


def place(split: str) -> str:
    """The config key of a split."""
    return f"data.{split}" if split in ("train", "validation") else f"eval.{split}"


def value(config: Config, split: str) -> Any:
    """What the config gives for a split; None if nothing."""
    kind, _, name = split.partition(".")
    if kind == "new":
        return config.eval.new[name]
    return config.eval.general if kind == "general" else getattr(config.data, split)


def is_mixture(config: Config, split: str) -> bool:
    """Whether the sources of a split are kept apart, so that their shares can be set."""
    mapped = any(isinstance(entry, dict) for entry in _entries(value(config, split)))
    return mapped or (split == "train" and config.data.temperature is not None)


def items(config: Config, split: str) -> list[DataEntry]:
    """The entries of a split. Raises `ConfigError` for what is none, and when there are none."""
    given, where = value(config, split), place(split)
    if given is None or given == []:
        raise ConfigError("no data given", where=where, hint=f"{where}=PATH, GLOB or hub name")
    if found := list(problems(config, split)):
        raise ConfigError(found)
    data = config.data
    if split == "general":  # a layout of its own, whatever that of the training data is
        data = replace(data, format="auto", columns={})
    return [_item(data, entry) for entry in _entries(given)]


def paths(config: Config, split: str) -> list[str]:
    """Paths and names that a split names, without judging them."""
    entries = _entries(value(config, split))
    found = (entry.get("path") if isinstance(entry, dict) else entry for entry in entries)
    return [path for path in found if isinstance(path, str) and path]


def check(config: Config) -> Iterator[Problem]:
    """What is wrong with the sources of all splits and their shares."""
    for split in splits(config):
        yield from problems(config, split)
        entries = _entries(value(config, split))
        if split != "train" and any(isinstance(e, dict) and _share_keys(e) for e in entries):
            hint = "held-out data is evaluated as it is: leave weight and epochs out"
            yield Problem(place(split), "shares of a mixture", hint)


def problems(config: Config, split: str) -> Iterator[Problem]:
    """What is wrong with the sources of one split."""
    given, where = value(config, split), place(split)
    entries = _entries(given)
    if (given is not None or split.startswith("new.")) and not entries:
        hint = f"give {_FORMS}, e.g. {where}=records.jsonl"
        yield Problem(where, f"{given!r} is not a source of data", hint)
    for number, entry in enumerate(entries, 1):
        here = f"{where}[{number}]" if isinstance(given, list) else where
        if isinstance(entry, dict):
            yield from _mapping(entry, here)
        elif not isinstance(entry, str) or not entry:
            hint = (
                f"give {_FORMS}, or mappings {{path: ..., weight: ...}}, e.g. {where}=records.jsonl"
            )
            yield Problem(where, f"{entry!r} is not a source of data", hint)
    mapped = [entry for entry in entries if isinstance(entry, dict)]
    shares = {key for entry in mapped for key in _share_keys(entry)}
    tempered = split == "train" and config.data.temperature is not None
    if len(shares) > 1 or (shares and tempered):
        found = " and ".join(sorted(shares | ({"temperature"} if len(shares) < 2 else set())))
        yield Problem(where, f"{found} together", "say the shares in one way")
    named = [str(e.get("name") or e.get("path")) for e in mapped]
    for name in sorted({name for name in named if named.count(name) > 1}):
        yield Problem(where, f"two sources are called {name!r}", "give each a name of its own")


def _mapping(entry: dict[Any, Any], where: str) -> Iterator[Problem]:
    for key, value in entry.items():
        if key not in _KEYS:
            yield Problem(where, f"unknown key {key!r}", did_you_mean(str(key), _KEYS))
        elif value is not None and not _fits(key, value):
            yield Problem(where, f"{key} is {value!r}", "see docs/data.md, Mixtures")
        elif key in ("weight", "epochs", "limit") and value is not None:
            if not 0 < value < math.inf:
                hint = "leave the source out" if value == 0 else "give a number above 0"
                yield Problem(where, f"{key} is {value!r}", hint)
        elif key == "format" and value:
            yield from format_problems(value, where)
    if not entry.get("path"):
        yield Problem(where, "a source without a path", "write {path: FILE, weight: 2}")


def _fits(key: str, value: Any) -> bool:
    return isinstance(value, _KEYS[key]) and not isinstance(value, bool)


def format_problems(name: str, where: str) -> Iterator[Problem]:
    """What is wrong with the name of a format."""
    if name == "auto" or name in FORMATS or name.endswith(".py"):
        return
    hint = did_you_mean(name, ["auto", *FORMATS])
    yield Problem(where, f"unknown format {name!r}", f"{hint}, or the path of a .py file")


def _share_keys(entry: dict[str, Any]) -> list[str]:
    return [key for key in ("weight", "epochs") if entry.get(key) is not None]


def _item(data: DataConfig, entry: Any) -> DataEntry:
    if isinstance(entry, str):
        entry = {"path": entry}

    def given(key: str, default: Any) -> Any:
        return default if entry.get(key) is None else entry[key]

    return DataEntry(
        path=entry["path"],
        name=given("name", entry["path"]),
        format=given("format", data.format),
        columns=given("columns", data.columns),
        limit=given("limit", data.limit),
        revision=given("revision", data.revision),
        weight=entry.get("weight"),
        epochs=entry.get("epochs"),
    )


def _entries(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
