"""The files of the user's own that a config names, and the copies that a run keeps of them.

A run goes on with the code that it began with: with the objective's file, the formats' of all its
data, and the modules beside them that they import; and with the grader that it began with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.config.schema import variants
from launcher.core import owncode, runtime

#: Where entries of data may name a format each: dotted key -> whether it maps names to data.
_DATA = {"data.train": False, "data.validation": False, "eval.general": False, "eval.new": True}


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a config that names a file; what it stands in is an object or a mapping."""

    holder: Any
    key: str
    copy: str
    """Name of a copy of the file; of formats of entries `format-1.py` and so on."""
    where: str
    """The dotted key, of an entry that of its list."""

    def get(self) -> Any:
        """What stands there."""
        return _get(self.holder, self.key)

    def put(self, name: str) -> None:
        """Name another file."""
        if isinstance(self.holder, dict):
            self.holder[self.key] = name
        else:
            setattr(self.holder, self.key, name)


def is_code(name: Any) -> bool:
    """Whether a value names a Python file."""
    return isinstance(name, str) and name.endswith(".py")


def slots(config: Any) -> list[Slot]:
    """All places that name a Python file in a `Config`, or in the plain data of one."""
    found = []
    for dotted, copy in variants.OWN_FILES.items():
        section, _, key = dotted.partition(".")
        holder = _get(config, section)
        if is_code(_get(holder, key)):
            found.append(Slot(holder, key, copy, dotted))
    number = 0
    for dotted, are_named in _DATA.items():
        section, _, key = dotted.partition(".")
        for entry in entries(_get(_get(config, section), key), are_named=are_named):
            number += 1
            found.append(Slot(entry, "format", f"format-{number}.py", dotted))
    return found


def files(config: Any) -> list[Slot]:
    """The same, and all places that name the file of a grader."""
    found = slots(config)
    for dotted, copy in variants.OWN_GRADERS.items():
        section, _, key = dotted.partition(".")
        holder = _get(config, section)
        if isinstance(_get(holder, key), str):
            found.append(Slot(holder, key, copy, dotted))
    return found


def is_own(key: str, value: Any) -> bool:
    """Whether a value of a dotted key names a file of the user's own, but in an entry of data."""
    if key in variants.OWN_GRADERS:
        return isinstance(value, str)
    return key in variants.OWN_FILES and is_code(value)


def entries(value: Any, *, are_named: bool = False) -> Iterator[dict[str, Any]]:
    """The entries of data whose format is a file."""
    if are_named:
        for part in value.values() if isinstance(value, Mapping) else ():
            yield from entries(part)
        return
    for entry in value if isinstance(value, list) else [value]:
        if isinstance(entry, dict) and is_code(entry.get("format")):
            yield entry


def data_keys() -> dict[str, bool]:
    """The dotted keys of data whose entries may name a format."""
    return _DATA


def beside(file: Path, data: dict[str, Any]) -> dict[str, Any]:
    """`data`, with the files of the user's own that it names and that lie beside its YAML by their
    paths."""
    for slot in files(data):
        if (file.parent / slot.get()).is_file():
            slot.put(str(file.parent / slot.get()))
    return data


def unplaced(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """`data` of a config in `folder`, with the files that lie there named without it: the folder
    may move."""
    for slot in files(data):
        path = Path(slot.get())
        if path.parent == folder:
            slot.put(path.name)
    return data


def keep(config: Any, folder: Path) -> dict[str, str]:
    """Let `config` name copies in `folder` in the place of files of the user's. Returns name in the
    folder -> text, of the modules that they import too.

    A file that only the nodes of a cluster have, or that is no UTF-8, stays where it is.
    """
    texts: dict[str, str] = {}
    copies: dict[Path, str] = {}
    for slot in files(config):
        path = runtime.user_path(slot.get())
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path not in copies:
                texts |= _copied(path, slot.copy) if is_code(slot.get()) else _grader(path, slot)
                copies[path] = slot.copy
            slot.put(str(folder / copies[path]))
    return texts


def _copied(path: Path, copy: str) -> dict[str, str]:
    """A file and its modules: name of the copy -> text."""
    modules = owncode.copied_modules(copy)
    files = {copy: path}
    files |= {f"{modules}/{name}": file for name, file in owncode.modules(path).items()}
    return {name: file.read_text(encoding="utf-8") for name, file in files.items()}


def _grader(path: Path, slot: Slot) -> dict[str, str]:
    """The file of a grader, as it is; where it names folders beside it, with their paths."""
    import yaml  # takes a while

    text = path.read_text(encoding="utf-8")
    with contextlib.suppress(yaml.YAMLError, RecursionError):
        content = yaml.safe_load(text)
        moved = placed(content, path.parent)
        if moved != content:
            text = yaml.safe_dump(moved, allow_unicode=True, sort_keys=False)
    return {slot.copy: text}


def placed(value: Any, folder: Path) -> Any:
    """A grader's wire form in `folder`, with the models that lie there by their paths."""
    if isinstance(value, list):
        return [placed(own, folder) for own in value]
    if not isinstance(value, dict):
        return value
    found = {key: placed(own, folder) for key, own in value.items()}
    model = found.get("model")
    is_folder = found.get("type") == "reward_model"  # else the model of an endpoint
    if is_folder and isinstance(model, str) and model and (folder / model).is_dir():
        found["model"] = str((folder / model).resolve())
    return found


def _get(holder: Any, key: str) -> Any:
    if isinstance(holder, Mapping):
        return holder.get(key)
    return getattr(holder, key, None)
