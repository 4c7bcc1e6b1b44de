"""Reads what a run folder holds for its page. Any file may be missing, cut short or damaged."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.config.schema import conversion
from launcher.core.files import read_json
from launcher.core.rundir import RunDir, Status

Point = tuple[float, float]
#: rollouts whose answers are on a page, and prompts of each.
ROLLOUTS, PROMPTS = 12, 3


@dataclass(slots=True)
class RunFacts:
    """Everything that the page is made of; empty where the run has not come so far."""

    name: str
    folder: str
    status: Status
    log: str | None
    config: dict[str, Any]
    overrides: list[str]
    plan: dict[str, Any]
    environment: dict[str, Any]
    train: list[dict[str, Any]] = field(default_factory=list)
    held_out: list[dict[str, Any]] = field(default_factory=list)
    base: dict[str, Any] = field(default_factory=dict)
    tuned: dict[str, Any] = field(default_factory=dict)
    comparison: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] = field(default_factory=dict)
    """Which evaluation the run chose, as eval/best.json says it."""
    predictions: list[dict[str, Any]] = field(default_factory=list)
    data: dict[str, dict[str, Any]] = field(default_factory=dict)
    attempts: int = 0
    memory: dict[str, Any] = field(default_factory=dict)
    """memory.json: what each rank held in a step."""
    experts: dict[str, Any] = field(default_factory=dict)
    """experts.json: how the routers shared out the tokens of the last logged step."""
    rollouts: dict[int, list[list[dict[str, Any]]]] = field(default_factory=dict)
    """Step before which answers were drawn -> prompt -> its answers: of the first prompts of some
    rollouts, evenly spread."""


def collect(run: RunDir) -> RunFacts:
    """Read a run folder; what cannot be read counts as missing."""
    train, held_out = _metrics(run.metrics)
    attempts = run.attempts()
    log = run.log(attempts[-1], 0) if attempts else None
    return RunFacts(
        name=run.name,
        folder=str(run),
        status=run.status(),
        log=str(log) if log is not None and log.exists() else None,
        config=conversion.for_others(_mapping(_yaml(run.config))),
        overrides=[
            word
            for word in map(str, _sequence(_yaml(run.overrides)))
            if conversion.is_for_others(word)
        ],
        plan=_mapping(read_json(run.plan)),
        memory=_mapping(read_json(run.memory)),
        experts=_mapping(read_json(run.experts, {})),
        environment=_mapping(read_json(run.environment)),
        train=train,
        held_out=held_out,
        base=_scores(run.eval / "base.json"),
        tuned=_scores(run.eval / "tuned.json"),
        comparison=_comparison(run.eval / "comparison.json"),
        best=_mapping(read_json(run.best)),
        predictions=[
            line
            for line in _lines(run.eval / "predictions.jsonl")
            if {"prompt", "tuned"} <= set(line)
        ],
        data=_data(run.data),
        attempts=len(attempts),
        rollouts=_rollouts(run.rollouts),
    )


def series(lines: list[dict[str, Any]], key: str) -> list[Point]:
    """(step, value) of lines that have a finite number under `key`, by step; the last counts."""
    points = {}
    for line in lines:
        step, value = as_number(line.get("step")), as_number(line.get(key))
        if step is not None and value is not None:
            points[step] = value
    return sorted(points.items())


def as_number(value: object) -> float | None:
    """`value` as a finite float, or None; metrics.jsonl has NaN as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def flatten(value: object, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of every leaf of nested mappings."""
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    elif prefix:
        yield prefix, value


def _metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    lines = list(_lines(path))
    held_out = [line for line in lines if line.get("kind") == "eval"]
    return [line for line in lines if line.get("kind") != "eval"], held_out


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """The mappings of a JSON Lines file; a torn or foreign line is left out."""
    try:
        with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
            for line in file:
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(value, dict):
                    yield value
    except OSError:
        return


def _rollouts(folder: Path) -> dict[int, list[list[dict[str, Any]]]]:
    names = {path.stem.removeprefix("step-"): path for path in folder.glob("step-*.jsonl")}
    found = sorted((int(name), path) for name, path in names.items() if name.isdecimal())
    count = min(ROLLOUTS, len(found))
    chosen = [found[i * (len(found) - 1) // max(1, count - 1)] for i in range(count)]
    read = {step: _first_prompts(path) for step, path in chosen}
    return {step: prompts for step, prompts in read.items() if prompts}


def _first_prompts(path: Path) -> list[list[dict[str, Any]]]:
    """Lines of the first prompts of a rollout, in which answers come by prompt."""
    prompts: dict[int, list[dict[str, Any]]] = {}
    for line in _lines(path):
        place = line.get("place")
        if not isinstance(place, int):
            continue
        if place not in prompts and len(prompts) == PROMPTS:
            break
        prompts.setdefault(place, []).append(line)
    return list(prompts.values())


def _comparison(path: Path) -> dict[str, Any]:
    comparison = _mapping(read_json(path))
    rows = _mapping(comparison.get("metrics"))
    needed = {"base", "tuned", "difference", "interval", "verdict", "records"}
    usable = {name: row for name, row in rows.items() if needed <= set(_mapping(row))}
    return {**comparison, "metrics": usable} if usable else {}


def _scores(path: Path) -> dict[str, Any]:
    """Scores of one model, without the per-record results that come with them."""
    return _mapping(_mapping(read_json(path)).get("metrics"))


def _data(path: Path) -> dict[str, dict[str, Any]]:
    """index.json of the prepared splits that are still there, by split."""
    splits = {}
    for split, folder in _mapping(read_json(path)).items():
        index = _mapping(read_json(Path(str(folder)) / "index.json")) if folder else {}
        if index:
            splits[str(split)] = index
    return splits


def _yaml(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _sequence(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
