"""What a replay would run: numbers, steps, memory and time of each job, and what is missing."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.account.layout import RESULT, Folder
from launcher.account.mapping import Settings
from launcher.account.succession import JobLeftOut, Successor
from launcher.core.console import duration, size
from launcher.core.errors import ConfigError, LauncherError, Problem
from launcher.core.files import read_json, write_json
from launcher.report.renderer import visible
from launcher.runs import requirements
from launcher.serve import judges
from launcher.serve.jobs.run_config import Inputs, Translation, translate
from launcher.serve.site import Site


def planned(found: Settings, jobs: Sequence[Successor], out: Path, project: str) -> list[Any]:
    """What each job will be: its numbers, steps and memory, as JSON; `ConfigError` for a mapping
    that makes no run of it."""
    with tempfile.TemporaryDirectory() as graders:  # what is planned is looked at as it will be
        return _rows(found, jobs, out, project, Path(graders))


def _rows(
    found: Settings, jobs: Sequence[Successor], out: Path, project: str, graders: Path
) -> list[Any]:
    made: dict[str, Translation] = {}
    missing: dict[tuple[str, str], str | None] = {}
    known = speeds(out)
    rows = []
    for job in jobs:
        is_checked = job.validation is not None
        key = repr((job.offer, job.method, job.asked.asked(), job.examples, is_checked))
        if key not in made:
            grader = None
            if job.asked.grader is not None:
                grader = graders / f"{len(made)}.yaml"
                grader.write_text(judges.as_file(job.asked.grader), encoding="utf-8")
            made[key] = _translated(found.site, job, out, project, grader)
        one = made[key]
        needs = job.offer, job.method
        if needs not in missing:
            missing[needs] = _missing(one)
        steps = one.numbers.steps_of_epoch(job.examples) * one.numbers.n_epochs
        speed = known.get(job.offer)
        work = job.examples * one.numbers.n_epochs
        rows.append(
            {
                "id": job.id,
                "model": job.record.get("fine_tuned_model"),
                "method": job.method,
                "base": job.asked.model,
                "offer": job.offer,
                "name": one.config.model.name or one.config.model.kind,
                "after": job.parent,
                "remark": job.remark,
                "examples": job.examples,
                "hyperparameters": one.numbers.as_dict(),
                "steps": steps,
                "ranks": one.plan.world_size,
                "memory_bytes": one.plan.device_bytes,
                "seconds": None if speed is None else round(speed * work),
                "missing": missing[needs],
            }
        )
    return rows


def note(
    folder: Folder,
    rows: Sequence[Mapping[str, Any]],
    left: Sequence[JobLeftOut],
    out: Path,
    project: str,
) -> None:
    """Keep the plan beside what was pulled, for the page; of other plans for `out`, the jobs that
    this one has not. `StorageError` if it cannot be written."""
    to = str(out.resolve())
    before = read_json(folder.plan, {})
    others = before if before.get("to") == to else {}
    known = {row["id"] for row in rows}
    out_now = {one.id: {"id": one.id, "why": one.why} for one in left}
    out_then = {one["id"]: one for one in others.get("left_out", ()) if one["id"] not in known}
    older = [row for row in others.get("jobs", ()) if row["id"] not in known | out_now.keys()]
    about = {"to": to, "project": project, "planned_at": int(time.time())}
    all_left = [*{**out_then, **out_now}.values()]
    write_json(folder.plan, {**about, "jobs": [*rows, *older], "left_out": all_left})


def _translated(
    site: Site, job: Successor, out: Path, project: str, grader: Path | None
) -> Translation:
    row = job.row("")
    inputs = Inputs(
        runs=out / "runs",
        training=job.training.path,
        validation=job.validation.path if job.validation else None,
        examples=job.examples,
        grader=grader,
    )
    own = out / "conf"
    return translate(site, row, inputs, [own] if own.is_dir() else [], project)


def _missing(made: Translation) -> str | None:
    """What a run needs and has not: its base model, packages; None if nothing."""
    try:
        requirements.require(made.config)
    except LauncherError as error:
        return str(error)
    return None


def require_all(rows: Sequence[Mapping[str, Any]]) -> None:
    """`ConfigError` if something is missing for a job of the plan."""
    found = {row["missing"]: row["offer"] for row in rows if row["missing"]}
    if found:
        raise ConfigError([Problem(f"models.{offer}", text) for text, offer in found.items()])


def speeds(out: Path) -> dict[str, float]:
    """Offer -> seconds for an example and epoch, of the jobs that have ended in `out`."""
    kept = read_json(out / RESULT, {})
    sums: dict[str, list[float]] = {}
    for row in kept.get("jobs", ()):
        if row.get("seconds") and row.get("work"):
            total = sums.setdefault(row["offer"], [0.0, 0.0])
            total[0], total[1] = total[0] + row["seconds"], total[1] + row["work"]
    return {offer: seconds / work for offer, (seconds, work) in sums.items()}


def told_plan(rows: Sequence[Mapping[str, Any]], left: Sequence[JobLeftOut]) -> str:
    """The plan for a terminal."""
    lines = []
    for row in rows:
        after = f", after {row['after']}" if row["after"] else ""
        memory = "not known" if row["memory_bytes"] is None else size(row["memory_bytes"])
        numbers = ", ".join(f"{name} {value:g}" for name, value in row["hyperparameters"].items())
        took = "not known yet" if row["seconds"] is None else duration(row["seconds"])
        lines += [
            f"{row['id']}  {row['method']}, {row['base']} -> {row['offer']}: {row['name']}{after}",
            f"  {row['examples']:,} examples, {numbers}: {row['steps']:,} steps,"
            f" memory {memory} a rank, time {took}",
        ]
        if row["remark"]:
            lines.append(f"  {row['remark']}")
        if row["missing"]:
            lines.append(f"  missing: {row['missing']}")
    lines += [f"{one.id}  left out: {one.why}" for one in left]
    lines.append(f"{len(rows):,} jobs are run again, {len(left):,} left out")
    return visible("\n".join(lines))
