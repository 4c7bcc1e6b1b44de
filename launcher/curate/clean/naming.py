"""How the files of a cleaned copy are called, and how `data.train` names them."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launcher.config.derive import data_entries
from launcher.curate.scan.inputs import Input
from launcher.curate.scan.scan import Scan


def names_of(train: Sequence[Input]) -> dict[int, str]:
    """File in OUT of every input."""
    if len(train) == 1:
        return {train[0].file: "train.jsonl"}
    names: dict[int, str] = {}
    for entry in train:
        stem = Path(entry.name.rstrip("/")).name.split(".")[0].replace(":", "-")
        # A name that is no UTF-8 has no place in a config or in clean.json.
        stem = stem.encode("utf-8", "replace").decode().replace("?", "_") or "data"
        name, number = f"train/{stem}.jsonl", 1
        while name in names.values():
            number += 1
            name = f"train/{stem}-{number}.jsonl"
        names[entry.file] = name
    return names


def train_value(found: Scan, names: dict[int, str], counts: Counter[str]) -> Any:
    """What `data.train` is to be, in OUT: a file, a folder, or mappings of a mixture."""
    data = found.config.data
    if len(names) == 1:
        return "train.jsonl"
    formats = {found.train.formats[file] for file in names if file in found.train.formats}
    if not data_entries.is_mixture(found.config, "train") and len(formats) < 2:
        return "train"
    of = [entry for entry in found.inputs if entry.file in names and counts[names[entry.file]]]
    sizes: Counter[str] = Counter()
    for entry in of:
        sizes[entry.quota] += counts[names[entry.file]]
    mappings = []
    for entry in of:
        item, name = entry.item, names[entry.file]
        mapping: dict[str, Any] = {"path": name}
        if item.format != data.format:
            mapping["format"] = item.format
        if item.columns != data.columns:
            mapping["columns"] = item.columns
        if item.weight is not None:
            mapping["weight"] = round(item.weight * counts[name] / sizes[entry.quota], 6)
        if item.epochs is not None:
            mapping["epochs"] = item.epochs
        mappings.append(mapping)
    return mappings


def override(out: Path, train: Any) -> str:
    """`data.train=...` as a word for the shell."""
    if isinstance(train, str):
        return shlex.quote(f"data.train={out / train}")
    given = [{**mapping, "path": str(out / mapping["path"])} for mapping in train]
    return shlex.quote(f"data.train={_flow(given)}")


def _flow(value: Any) -> str:
    """A value as overrides write it."""
    if isinstance(value, list):
        return f"[{', '.join(map(_flow, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_flow(part)}' for key, part in value.items())}}}"
    if isinstance(value, str) and not re.fullmatch(r"[A-Za-z_/][\w./-]*", value):
        return json.dumps(value, ensure_ascii=False)
    return str(value)
