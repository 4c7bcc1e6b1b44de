"""What `data.train` and `data.validation` name: paths as they are, or mappings of a mixture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from launcher.config.schema import Config, DataConfig
from launcher.config.variants import FORMATS
from launcher.errors import ConfigError, Problem, did_you_mean

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
class Item:
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


def is_mixture(data: DataConfig, split: str) -> bool:
    """Whether the sources of a split are kept apart, so that their shares can be set."""
    value = getattr(data, split)
    mapped = any(isinstance(entry, dict) for entry in _entries(value))
    return mapped or (split == "train" and data.temperature is not None)


def items(data: DataConfig, split: str) -> list[Item]:
    """The entries of a split. Raises `ConfigError` for what is none, and when there are none."""
    value = getattr(data, split)
    where = f"data.{split}"
    if value is None or value == []:
        raise ConfigError("no data given", where=where, hint=f"{where}=PATH, GLOB or hub name")
    if found := list(problems(data, split)):
        raise ConfigError(found)
    return [_item(data, entry) for entry in _entries(value)]


def paths(value: Any) -> list[str]:
    """Paths and names in a value of `data.train` or `data.validation`, without judging it."""
    found = (e.get("path") if isinstance(e, dict) else e for e in _entries(value))
    return [path for path in found if isinstance(path, str) and path]


def check(config: Config) -> Iterator[Problem]:
    """What is wrong with the sources of both splits and their shares."""
    data = config.data
    for split in ("train", "validation"):
        yield from problems(data, split)
    shared = [e for e in _entries(data.validation) if isinstance(e, dict) and _share_keys(e)]
    if shared:
        hint = "held-out data is evaluated as it is: leave weight and epochs out"
        yield Problem("data.validation", "shares of a mixture", hint)


def problems(data: DataConfig, split: str) -> Iterator[Problem]:
    """What is wrong with the sources of one split."""
    value = getattr(data, split)
    where = f"data.{split}"
    entries = _entries(value)
    if value is not None and not entries:
        yield Problem(where, f"{value!r} is not a source of data", f"give {_FORMS}")
    for number, entry in enumerate(entries, 1):
        here = f"{where}[{number}]" if isinstance(value, list) else where
        if isinstance(entry, dict):
            yield from _mapping(entry, here)
        elif not isinstance(entry, str) or not entry:
            hint = f"give {_FORMS}, or mappings {{path: ..., weight: ...}}"
            yield Problem(where, f"{entry!r} is not a source of data", hint)
    mapped = [entry for entry in entries if isinstance(entry, dict)]
    given = {key for entry in mapped for key in _share_keys(entry)}
    if len(given) > 1 or (given and split == "train" and data.temperature is not None):
        found = " and ".join(sorted(given | ({"temperature"} if len(given) < 2 else set())))
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


def _item(data: DataConfig, entry: Any) -> Item:
    if isinstance(entry, str):
        entry = {"path": entry}

    def value(key: str, default: Any) -> Any:
        return default if entry.get(key) is None else entry[key]

    return Item(
        path=entry["path"],
        name=value("name", entry["path"]),
        format=value("format", data.format),
        columns=value("columns", data.columns),
        limit=value("limit", data.limit),
        revision=value("revision", data.revision),
        weight=entry.get("weight"),
        epochs=entry.get("epochs"),
    )


def _entries(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]
