"""The page of a folder: what is there, what could not be read, which models stop when, and what
`replay` makes of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from launcher.account.layout import PAGE, RESULT, Folder
from launcher.core.console import duration, size
from launcher.core.files import read_json
from launcher.report import renderer

_ENDED = ("succeeded", "failed", "cancelled", "not begun")
_TEMPLATE = Path(__file__).with_name("page.html.j2")


def build(folder: Folder, made: Mapping[str, Any]) -> Path:
    """Write the page of a manifest and return its path; `StorageError` if it cannot be."""
    path = folder.path / PAGE
    kept = [one for one in made["files"] if one["state"] == "kept"]
    values = {
        "account": made,
        "when": _day(made["pulled_at"], "%Y-%m-%d %H:%M UTC"),
        "kept": len(kept),
        "bytes": size(sum(one["bytes"] for one in kept)),
        "folder": str(folder.path),
        "replay": _replay(folder),
    }
    filters = {
        "day": _day,
        "size": lambda count: "" if count is None else size(count),
        "duration": lambda seconds: "not known yet" if seconds is None else duration(seconds),
    }
    page = renderer.render(_TEMPLATE, values, filters=filters, visible=renderer.visible)
    renderer.write(path, page)
    return path


def refresh(folder: Folder) -> None:
    """Write the page anew, of the manifest that is there; `StorageError` if it cannot be."""
    build(folder, read_json(folder.manifest, {}))


def _replay(folder: Folder) -> dict[str, Any] | None:
    """The plan of `replay` with what has become of each job by now; None if there is none."""
    plan = read_json(folder.plan, None)
    if plan is None:
        return None
    result = read_json(Path(plan["to"]) / RESULT, {})
    known = {row["id"]: row for row in result.get("jobs", ())}
    jobs = []
    for row in plan["jobs"]:
        now = known.get(row["id"], {})
        state = now.get("state", "planned")
        jobs.append({**row, "state": state, "made": now.get("model"), "error": now.get("error")})
    left_s = [row["seconds"] for row in jobs if row["state"] not in _ENDED]
    states = Counter(row["state"] for row in jobs)
    return {
        **plan,
        "when": _day(plan["planned_at"], "%Y-%m-%d %H:%M UTC"),
        "jobs": jobs,
        "states": ", ".join(f"{count:,} {state}" for state, count in sorted(states.items())),
        "left_s": None if None in left_s else sum(left_s),
    }


def _day(seconds: Any, form: str = "%Y-%m-%d") -> str:
    try:
        return datetime.fromtimestamp(float(seconds), timezone.utc).strftime(form)
    except (TypeError, ValueError, OverflowError, OSError):
        return ""
