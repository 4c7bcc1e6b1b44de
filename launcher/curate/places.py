"""Names of records on the page: without the folder that all files share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

#: keys of a report under which records are named.
_PLACES = ("where", "why", "train", "eval", "evalset", "name")


def shortened(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report without the folder that all its files share where it names records: only its
    list of inputs says it."""
    names = [entry["name"] for entry in report["inputs"]]
    folders = [os.path.dirname(name) for name in names if name.startswith("/")]
    shared = os.path.commonpath(folders).rstrip("/") if folders else ""
    if not shared:
        return dict(report)

    def short(value: Any, key: str) -> Any:
        if isinstance(value, str):
            return value.replace(f"{shared}/", "") if key in _PLACES else value
        if isinstance(value, Mapping):
            return {name: short(part, name) for name, part in value.items()}
        return [short(part, key) for part in value] if isinstance(value, list) else value

    return {key: part if key == "inputs" else short(part, "") for key, part in report.items()}
