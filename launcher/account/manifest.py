"""What a folder holds, what could not be read and why, and which models stop when."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from launcher.account import shutdowns
from launcher.account.layout import Folder
from launcher.account.pull import PURPOSES, Findings
from launcher.core.console import size
from launcher.report.renderer import visible

VERSION = 1
_JOB = (
    *("id", "status", "model", "fine_tuned_model", "created_at", "finished_at"),
    *("training_file", "validation_file", "trained_tokens"),
)


def make(folder: Folder, base_url: str, found: Findings) -> dict[str, Any]:
    """The manifest of a folder after a pull, as JSON."""
    jobs = [_job(folder, record, found) for record in folder.records("jobs")]
    return {
        "version": VERSION,
        "base_url": base_url,
        "pulled_at": int(time.time()),
        "complete": found.is_complete,
        "files": [_file(folder, record, found) for record in folder.records("files")],
        "jobs": jobs,
        "models": _models(jobs, found),
        "evals": [_eval(folder, record, found) for record in folder.records("evals")],
        "batches": [
            {"id": one["id"], "status": one.get("status"), "gone": _is_gone(one, "batches", found)}
            for one in folder.records("batches")
        ],
        "unread": [
            {"what": gap.what, "why": gap.why, "refused": gap.is_refused} for gap in found.gaps
        ],
        "ends": {
            "new_jobs": shutdowns.NO_NEW_JOBS,
            "evals_read_only": shutdowns.EVALS_READ_ONLY,
            "evals": shutdowns.EVALS_GONE,
            "source": shutdowns.SOURCE,
            "second_hand": True,
        },
    }


def _file(folder: Folder, record: Mapping[str, Any], found: Findings) -> dict[str, Any]:
    kept = folder.kept(record["id"])
    about = {name: record.get(name) for name in ("id", "filename", "purpose", "created_at")}
    about |= {"stated_bytes": record.get("bytes"), "gone": _is_gone(record, "files", found)}
    if kept is None:
        state = "not read" if record.get("purpose") in PURPOSES else "of no use here"
        return {**about, "state": state, "bytes": None, "sha256": None, "path": None}
    return {
        **about,
        "state": "differs" if kept.fault else "kept",
        "bytes": kept.bytes,
        "sha256": kept.sha256,
        "path": str(kept.path.relative_to(folder.path)),
        "decoded": str(kept.decoded.relative_to(folder.path)) if kept.decoded else None,
    }


def _job(folder: Folder, record: Mapping[str, Any], found: Findings) -> dict[str, Any]:
    method = record.get("method")
    counts = folder.counts("jobs", record["id"])
    return {
        **{name: record.get(name) for name in _JOB},
        "method": method.get("type") if isinstance(method, dict) else "supervised",
        "events": counts.get("events"),
        "checkpoints": counts.get("checkpoints"),
        "gone": _is_gone(record, "jobs", found),
    }


def _models(jobs: Iterable[Mapping[str, Any]], found: Findings) -> list[dict[str, Any]]:
    """Fine-tuned models that jobs have made, or that the server lists, and when they end."""
    listed = {str(one.get("id")): one for one in found.models}
    made = {str(job["fine_tuned_model"]): job for job in jobs if job.get("fine_tuned_model")}
    names = [*made, *(name for name in listed if name.startswith("ft:") and name not in made)]
    rows = []
    for name in names:
        base = shutdowns.base_of(name)
        end = shutdowns.end_of(name, listed.get(name))
        if end.day is None:
            end = shutdowns.end_of(base, listed.get(base))
        job = made.get(name)
        rows.append(
            {
                "id": name,
                "base": base,
                "job": job["id"] if job else None,
                "listed": name in listed,
                "ends": end.day,
                "ends_by": end.source,
            }
        )
    return sorted(rows, key=lambda row: (row["ends"] or "9999", row["id"]))


def _eval(folder: Folder, record: Mapping[str, Any], found: Findings) -> dict[str, Any]:
    kind = f"evals/{record['id']}/runs"
    runs = []
    for run in folder.records(kind):
        counts = folder.counts(kind, run["id"])
        about = {name: run.get(name) for name in ("id", "name", "model", "status")}
        runs.append({**about, "items": counts.get("items")})
    gone = _is_gone(record, "evals", found)
    return {"id": record["id"], "name": record.get("name"), "runs": runs, "gone": gone}


def _is_gone(record: Mapping[str, Any], kind: str, found: Findings) -> bool:
    """Whether it is here, and the server names it no more; where the list was read."""
    is_read = not any(gap.what == kind for gap in found.gaps)
    return is_read and record["id"] not in found.seen.get(kind, ())


def told(made: Mapping[str, Any]) -> str:
    """The manifest for a terminal."""
    files, jobs = made["files"], made["jobs"]
    kept = [one for one in files if one["state"] == "kept"]
    succeeded = sum(job["status"] == "succeeded" for job in jobs)
    runs = sum(len(one["runs"]) for one in made["evals"])
    lines = [
        f"jobs     {len(jobs):,}, {succeeded:,} of them succeeded",
        f"files    {len(kept):,} of {len(files):,} with their content,"
        f" {size(sum(one['bytes'] for one in kept))}",
        f"models   {len(made['models']):,} fine-tuned, {_first_end(made['models'])}",
        f"evals    {len(made['evals']):,} with {runs:,} runs",
        f"batches  {len(made['batches']):,}",
    ]
    lines += [f"not read {one['what']}: {one['why']}" for one in made["unread"][:20]]
    if len(made["unread"]) > 20:
        lines.append(f"not read {len(made['unread']) - 20:,} more, see the page")
    if not made["complete"]:
        lines.append("not all could be read: the same command goes on")
    return visible("\n".join(lines))


def _first_end(models: Iterable[Mapping[str, Any]]) -> str:
    days = sorted({model["ends"] for model in models if model["ends"]})
    return f"the first stop on {days[0]}" if days else "no last day known"
