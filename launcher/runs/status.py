"""What state runs are in. A listing opens one file a run: 10,000 runs take under a second."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from launcher.core import console, vitals
from launcher.core.errors import ExitCode
from launcher.core.files import read_json
from launcher.core.processes import alive
from launcher.core.rundir import RunDir, State, Status
from launcher.launch.outcome import settled
from launcher.runs import scheduled

_TAIL_BYTES = 65536
_NOT_SUBMITTED = "not submitted: "
_SHOWN = (
    *("loss", "lr", "grad_norm", "tokens_per_s", "step_time_s", "memory_bytes", "epoch"),
    *("step_skew", "slowest_rank"),
)


@dataclass(frozen=True, slots=True)
class ListedRun:
    """One run in a listing."""

    name: str
    path: str
    status: Status

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        values = {**asdict(self.status), "state": self.status.state.value}
        return {"name": self.name, "path": self.path, **values}


def is_live(status: Status) -> bool:
    """Whether another process of this host, the one that wrote the state, still runs."""
    if settled(status) or status.host != socket.gethostname() or status.pid == os.getpid():
        return False
    return alive(status.pid, status.time)


def observed(status: Status) -> Status:
    """The state as far as it can be true: a run of this host whose process is gone has failed."""
    if settled(status) or status.host != socket.gethostname() or alive(status.pid, status.time):
        return status
    if status.state is State.queued:  # no queue knows it, and who was to put it there is gone
        return not_submitted(status, status.reason or "its submission was cut off")
    reason = f"lost: process {status.pid} of {status.host} is gone without a result"
    return replace(
        status, state=State.failed, reason=reason, exit_code=int(ExitCode.internal), lost=True
    )


def not_submitted(status: Status, why: str) -> Status:
    """The state of an attempt that no back end has taken: another try may do."""
    reason = why if why.startswith(_NOT_SUBMITTED) else f"{_NOT_SUBMITTED}{why}"
    code = int(ExitCode.preempted)
    return replace(status, state=State.preempted, reason=reason, exit_code=code)


def listing(root: str | os.PathLike[str]) -> list[ListedRun]:
    """All runs directly under `root`, oldest change first; no status.json means no run.

    Of running ones the heartbeat of rank 0 is read too, for the step.
    """
    rows = []
    try:
        with os.scandir(root) as entries:
            names = [entry.name for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []
    base = os.path.abspath(root)
    for name in names:
        path = f"{base}/{name}"
        try:
            with open(f"{path}/status.json", "rb") as file:
                raw = json.loads(file.read())
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError):
            raw = {}
        rows.append(ListedRun(name, path, _status(raw)))
    rows = observed_rows(rows)
    return sorted(rows, key=lambda row: (row.status.time, row.name))


def observed_rows(rows: list[ListedRun]) -> list[ListedRun]:
    """Rows with the states as far as they can be true; one question for all jobs of a queue."""
    charged = {row.path: scheduled.in_charge(row.path, row.status) for row in rows}
    live = {r.path: r.status for r in rows if charged[r.path] or not settled(r.status)}
    holders = {path: charged[path] for path in live}
    asked = [(path, live[path], held) for path, held in holders.items() if held]
    found = {path: observed(status) for path, status in live.items() if not holders[path]}
    answers = scheduled.observe(asked)
    found |= {path: status for (path, _, _), status in zip(asked, answers, strict=True)}
    return [
        replace(row, status=_with_step(found[row.path], row.path)) if row.path in found else row
        for row in rows
    ]


def observed_run(run: RunDir) -> Status:
    """The state of one run as far as it can be true, whoever looks after it."""
    status = run.status()
    held = scheduled.in_charge(run.path, status)
    return scheduled.observed(run, status, held) if held else observed(status)


def _with_step(status: Status, path: str) -> Status:
    if status.state is not State.running:
        return status
    raw = read_json(Path(path, "heartbeats", "rank-0.json"))
    beat = vitals.from_json(raw)
    if beat is not None and beat.attempt == status.attempt and beat.is_overdue(time.time()):
        age = console.duration(time.time() - beat.time)
        status = replace(status, reason=f"stalled: no sign of life from rank 0 for {age}")
    step = raw.get("step") if isinstance(raw, dict) else None
    return replace(status, step=max(status.step, step)) if isinstance(step, int) else status


def _status(raw: Any) -> Status:
    try:
        known = {key: raw[key] for key in Status.__dataclass_fields__ if key in raw}
        return Status(**{**known, "state": State(raw["state"])})
    except (TypeError, ValueError, KeyError):
        return Status(State.failed, reason="status.json is not readable")


def details(run: RunDir) -> dict[str, Any]:
    """One run in full: its state, its last logged numbers and what each rank is doing."""
    from launcher.config.compose import compose  # the listing does without

    status = observed_run(run)
    attempt = status.attempt
    tags = compose.load(run.config, runs_code=False).run.tags
    found = {**ListedRun(run.name, str(run), status).to_json(), "tags": tags}
    found["saved_step"] = saved_step(run)
    record = last_record(run.metrics)
    if record:
        found["step"] = max(status.step, record["step"])
        found["metrics"] = {key: record[key] for key in _SHOWN if key in record}
        if not settled(status):
            found["eta_s"] = console.remaining_s(record, status.steps)
    if not settled(status):
        beats = heartbeats(run)
        found["ranks"] = [b for b in beats.values() if b.get("attempt", attempt) == attempt]
        found |= _stall(found["ranks"])
    comparison = read_json(run.eval / "comparison.json")
    if comparison:
        found["comparison"] = comparison
    return found


def _stall(raw: list[dict[str, Any]]) -> dict[str, Any]:
    """`stalled`: which rank holds the run up, where none makes progress any more."""
    beats = [beat for beat in map(vitals.from_json, raw) if beat is not None]
    known, now = {beat.rank: beat for beat in beats}, time.time()
    return {"stalled": vitals.judge(known, now).reason} if vitals.is_stalled(known, now) else {}


def heartbeats(run: RunDir) -> dict[int, dict[str, Any]]:
    """Rank -> its last heartbeat: pid, host, step, phase, time, and `rank`."""
    beats = {}
    for file in run.heartbeats.glob("rank-*.json"):
        number = file.stem.removeprefix("rank-")
        beat = read_json(file)
        if number.isdecimal() and isinstance(beat, dict):
            beats[int(number)] = {"rank": int(number), **beat}
    return dict(sorted(beats.items()))


def saved_step(run: RunDir) -> int | None:
    """Step of the newest whole checkpoint; None if there is none."""
    names = sorted(path.parent.name for path in run.checkpoints.glob("step-*/manifest.json"))
    return int(names[-1].removeprefix("step-")) if names else None


def last_record(metrics: Path) -> dict[str, Any] | None:
    """The newest training record of metrics.jsonl, or None; reads only the file's end."""
    try:
        with open(metrics, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue  # cut off by the seek, or being written
        if isinstance(record, dict) and record.get("kind") == "train":
            return record
    return None


def table(rows: list[ListedRun]) -> str:
    """The listing as text: one line a run."""
    head = ("RUN", "STATE", "STEP", "ATTEMPT", "CHANGED", "REASON")
    cells = [head]
    for run in rows:
        status = run.status
        step = f"{status.step}/{status.steps}" if status.steps else str(status.step or "")
        age = f"{console.duration(time.time() - status.time)} ago" if status.time else ""
        reason = status.reason.partition("\n")[0]
        cells.append((run.name, status.state.value, step, str(status.attempt), age, reason))
    widths = [max(len(row[column]) for row in cells) for column in range(len(head) - 1)]
    lines = []
    for row in cells:
        padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        lines.append("  ".join([*padded, row[-1]]).rstrip())
    return "\n".join(lines)


def text(found: dict[str, Any]) -> str:
    """What `details` found, for people."""
    steps = f"/{found['steps']}" if found["steps"] else ""
    lines = [
        f"run      {found['name']}",
        f"folder   {found['path']}",
        f"state    {found['state']}" + (f": {found['reason']}" if found["reason"] else ""),
        f"attempt  {found['attempt']}",
        f"step     {found['step']}{steps}",
    ]
    if found["saved_step"] is not None:
        lines.append(f"saved    step {found['saved_step']}")
    if found["exit_code"] is not None:
        lines.append(f"exit     {found['exit_code']}")
    if found["tags"]:
        lines.append(f"tags     {', '.join(found['tags'])}")
    if "metrics" in found:
        record = {"step": found["step"], **found["metrics"]}
        total = None if found.get("eta_s") is None else found["steps"]
        lines.append(f"numbers  {' | '.join(console.metrics_parts(record, total))}")
    lines += _slowness(found)
    if "stalled" in found:
        lines.append(f"stalled  {found['stalled']}")
    for beat in found.get("ranks", []):
        age = console.duration(time.time() - beat["time"])
        place = f"{beat['host']} pid {beat['pid']}"
        lines.append(
            f"rank {beat['rank']:<3} {beat['phase']}, step {beat['step']}, {age} ago, {place}"
        )
    return "\n".join(lines)


def _slowness(found: dict[str, Any]) -> list[str]:
    hosts = {beat["rank"]: beat["host"] for beat in found.get("ranks", [])}
    lines, numbers = [], found.get("metrics", {})
    if "slowest_rank" in numbers:
        rank = numbers["slowest_rank"]
        host = f" on {hosts[rank]}" if rank in hosts else ""
        lines.append(f"slowest  rank {rank}{host}, {numbers['step_skew']:.2f}x the median")
    lines += [
        f"slow     rank {entry['rank']} on {entry['host']}, {entry['factor']:.2f}x the median,"
        f" reported at step {entry['step']}"
        for entry in found["slow"]
    ]
    return lines
