"""What the report page shows, as text and positions; the template only places it."""

from __future__ import annotations

import json
import math
import statistics
from typing import Any

from launcher.report import charts, compared, rollouts, sections, summary
from launcher.report.charts import Chart, Curve
from launcher.report.collect import Point, RunFacts, as_number, flatten, series

#: sample answers on the page where the config does not say.
SAMPLES = 20


def view(facts: RunFacts) -> dict[str, Any]:
    """Everything the template shows, as text and positions."""
    first = min(_sample_count(facts), len(facts.predictions))
    samples = compared.answers(facts.predictions, first)
    return {
        "state": facts.status.state.value,
        "progress": _progress(facts),
        "outcome": summary.outcome(facts.comparison) if facts.comparison else None,
        "verdict": summary.sentence(facts.comparison) if facts.comparison else None,
        "tiles": _tiles(facts),
        "comparison": compared.rows(facts.comparison),
        "notes": facts.comparison.get("notes", []),
        "slices": compared.slices(facts.comparison),
        "beyond": compared.beyond(facts.comparison),
        "sections": sections.view(facts.comparison),
        "charts": _charts(facts),
        "experts": _experts(facts),
        "reinforcement": rollouts.view(facts),
        "samples": samples,
        "kinds": compared.kinds(samples),
        "num_first": first,
        "num_predictions": len(facts.predictions),
        "plan": _plan(facts),
        "data": _data(facts),
        "overridden": {word.lstrip("+~").partition("=")[0] for word in facts.overrides},
        "config": [(key, _verbatim(value)) for key, value in flatten(facts.config)],
        "environment": [(key, _verbatim(value)) for key, value in flatten(facts.environment)],
    }


def _charts(facts: RunFacts) -> list[Chart]:
    train = facts.train
    base = as_number(facts.base.get("loss"))
    loss = charts.with_average("training", "a", series(train, "loss"))
    held_out = series(facts.held_out, "eval/loss")
    loss += [*_marks(facts, held_out), Curve("held-out", "dots", "b", held_out)]
    if base is not None:
        loss.append(Curve("held-out, base model", "level", "b", [(0.0, base)]))
    speed = [
        Curve("all tokens", "line", "a", series(train, "tokens_per_s")),
        Curve("target tokens", "line", "b", series(train, "target_tokens_per_s")),
    ]
    mfu = [Curve("MFU", "line", "a", series(train, "mfu"))]
    rate = [Curve("learning rate", "line", "a", series(train, "lr"))]
    norm = charts.with_average("", "a", series(train, "grad_norm"))
    use = [
        Curve("expert_use", "line", "a", series(train, "expert_use")),
        Curve("experts_unused", "line", "b", series(train, "experts_unused")),
    ]
    entropy = [Curve("entropy", "line", "a", series(train, "router_entropy"))]
    held = series(train, "memory_bytes")
    memory = [Curve("peak of rank 0", "line", "a", held)]
    unit = charts.GIB if any(size >= charts.GIB for _, size in held) else charts.MIB
    drawn = [
        charts.chart("loss", "Loss per target token, nats", loss, charts.plain),
        charts.chart("lr", "Learning rate", rate, charts.plain, from_zero=True),
        charts.chart("throughput", "Tokens per second", speed, charts.si, from_zero=True),
        charts.chart("memory", "Memory", memory, charts.bytes_in(unit), from_zero=True, unit=unit),
        charts.chart("grad-norm", "Gradient norm", norm, charts.plain, from_zero=True),
        charts.chart("mfu", "Model FLOPs utilisation", mfu, lambda v: f"{100 * v:.3g} %"),
        charts.chart("experts", "Use of experts", use, charts.plain, from_zero=True),
        charts.chart("router", "Router entropy, nats", entropy, charts.plain, from_zero=True),
    ]
    return [chart for chart in drawn if chart]


def _marks(facts: RunFacts, held_out: list[Point]) -> list[Curve]:
    """Where the held-out score was best, and where the run was stopped early."""
    step, name, scored = as_number(facts.best.get("step")), "held-out", dict(held_out)
    if "step" not in facts.best and held_out:
        step = min(held_out, key=lambda point: point[1])[0]
    elif facts.best.get("metric") not in (None, "loss"):
        name = f"eval.{facts.best['metric']}"
    stopped = as_number(facts.best.get("stopped"))
    found = []
    if step is not None and step in scored and len(held_out) > 1:
        found.append(
            Curve(f"best {name}, step {step:,.0f}", "mark", "good", [(step, scored[step])])
        )
    if stopped is not None and stopped in scored:
        point = (stopped, scored[stopped])
        found.append(Curve(f"stopped early, step {stopped:,.0f}", "mark", "neutral", [point]))
    return found


def _experts(facts: RunFacts) -> dict[str, Any] | None:
    """A cell for each expert of each router, the darker the more tokens it has had."""
    load = facts.experts.get("load")
    if not isinstance(load, dict) or not load:
        return None
    most = max(max(shares) for shares in load.values())
    cells = [
        {
            "row": row,
            "column": expert,
            "depth": round(share / most, 3),
            "said": f"{name}, expert {expert}: {share:.2%} of the choices",
        }
        for row, (name, shares) in enumerate(load.items())
        for expert, share in enumerate(shares)
    ]
    columns = max(map(len, load.values()))
    return {"step": facts.experts["step"], "rows": len(load), "columns": columns, "cells": cells}


def _tiles(facts: RunFacts) -> list[tuple[str, str, str]]:
    """(label, number, remark) of what people look for first."""
    tiles = []
    for name, row in list(facts.comparison.get("metrics", {}).items())[:4]:
        unit = row.get("unit", "")
        remark = f"base {summary.number(row['base'], unit)}"
        tiles.append((name, summary.number(row["tuned"], unit), remark))
    if not tiles:
        scores = list(facts.tuned.items())[:4]
        tiles = [(name, summary.number(as_number(score)), "tuned") for name, score in scores]
    speed = [value for _, value in series(facts.train, "tokens_per_s")]
    if speed:
        tiles.append(("tokens per second", charts.si(statistics.median(speed)), "median"))
    seconds = _seconds(facts)
    if seconds:
        tiles.append(("training time", duration(seconds), "in optimizer steps"))
    return tiles


def _plan(facts: RunFacts) -> list[tuple[str, str, str]]:
    """(quantity, planned, measured)."""
    plan, train = facts.plan, facts.train
    process = [value for _, value in series(train, "memory_bytes")]
    last = {key: series(train, key)[-1:] for key in ("tokens", "epoch", "step")}
    rows: list[tuple[str, object, object]] = [
        ("optimizer steps", plan.get("steps"), last["step"][0][1] if last["step"] else None),
        ("epochs", plan.get("epochs"), last["epoch"][0][1] if last["epoch"] else None),
        ("tokens per step", _slots(plan), _per_step(last["tokens"])),
        ("memory of a rank in a step", _planned_memory(plan), _held(facts)),
        *_held_by_use(facts),
        ("memory of rank 0's process", None, charts.in_bytes(max(process)) if process else None),
        ("ranks", plan.get("world_size"), None),
        ("sequences per step", _cut(plan), None),
        ("sequence length", plan.get("max_length"), None),
        ("warm-up steps", plan.get("warmup_steps"), None),
        ("computation", _join(plan, "device", "precision", "attention"), None),
        ("parameters", _millions(plan.get("parameters")), None),
        ("trained parameters", _millions(plan.get("trainable")), None),
    ]
    return [
        (label, _text(planned), "" if measured is None else _text(measured))
        for label, planned, measured in rows
        if planned is not None or measured is not None
    ]


def _data(facts: RunFacts) -> list[tuple[str, list[str]]]:
    """(quantity, one text a split), the first row being the names of the splits."""
    if not facts.data:
        return []
    flat = [dict(flatten(index)) for index in facts.data.values()]
    names = {
        "records": "records",
        "tokens": "tokens",
        "target_tokens": "target tokens",
        "longest": "longest record, tokens",
        "counts.read": "records read",
        "counts.skipped": "skipped as unusable",
        "counts.truncated": "truncated",
        "counts.dropped": "dropped as too long",
        "counts.split": "split into pieces",
        "counts.asked": "without an answer",
        "format": "format",
        "tokenizer": "tokenizer",
        "files": "files",
    }
    rows = [("", list(facts.data))]
    rows += [
        (label, [_text(index.get(key)) for index in flat])
        for key, label in names.items()
        if any(index.get(key) for index in flat)
    ]
    return rows


def _progress(facts: RunFacts) -> str:
    done = max([facts.status.step, *(int(step) for step, _ in series(facts.train, "step"))])
    steps = facts.status.steps or facts.plan.get("steps")
    text = f"step {done:,} of {steps:,}" if isinstance(steps, int) else f"step {done:,}"
    return f"{text}, {facts.status.reason}" if facts.best.get("stopped") else text


def _sample_count(facts: RunFacts) -> int:
    options = facts.config.get("eval")
    count = options.get("samples") if isinstance(options, dict) else None
    return count if isinstance(count, int) else SAMPLES


def _seconds(facts: RunFacts) -> float:
    """Time in optimizer steps, summed, since a run may have been away between attempts."""
    steps = series(facts.train, "step")
    times = dict(series(facts.train, "step_time_s"))
    seconds, before = 0.0, 0.0
    for step, _ in steps:
        seconds += times.get(step, 0.0) * (step - before)
        before = step
    return seconds


def _slots(plan: dict[str, Any]) -> str | None:
    sequences, length = plan.get("global_sequences"), plan.get("max_length")
    if not (isinstance(sequences, int) and isinstance(length, int)):
        return None
    return f"{sequences * length:,} at most"


def _per_step(tokens: list[tuple[float, float]]) -> str | None:
    return f"{tokens[0][1] / tokens[0][0]:,.0f} on average" if tokens and tokens[0][0] else None


def _planned_memory(plan: dict[str, Any]) -> str | None:
    uses = plan.get("memory")
    if not isinstance(uses, dict):
        return None
    on_device = plan.get("device") != "cpu"
    sizes = (as_number(size) for use, size in uses.items() if not (on_device and use == "host"))
    return charts.in_bytes(sum(size for size in sizes if size is not None))


def _ranks(facts: RunFacts) -> list[dict[str, Any]]:
    ranks = facts.memory.get("ranks")
    found = [rank for rank in ranks if isinstance(rank, dict)] if isinstance(ranks, list) else []
    return [rank for rank in found if as_number(rank.get("peak")) is not None]


def _held(facts: RunFacts) -> str | None:
    """The peak of each rank, or of the least and the most where there are many."""
    peaks = [rank["peak"] for rank in _ranks(facts)]
    if not peaks:
        return None
    low, high = charts.in_bytes(min(peaks)), charts.in_bytes(max(peaks))
    return high if low == high else f"{low} to {high}, by rank"


def _held_by_use(facts: RunFacts) -> list[tuple[str, object, object]]:
    """Weights and optimizer, planned and as the rank holds them that holds most."""
    planned = facts.plan.get("memory")
    fullest = max(_ranks(facts), key=lambda rank: float(rank["peak"]), default=None)
    if fullest is None or not isinstance(planned, dict):
        return []
    rows: list[tuple[str, object, object]] = []
    for use in ("weights", "optimizer"):
        before, after = as_number(planned.get(use)), as_number(fullest.get(use))
        if before is not None and after is not None:
            rows.append((f"of it {use}", charts.in_bytes(before), charts.in_bytes(after)))
    return rows


def _cut(plan: dict[str, Any]) -> str | None:
    keys = ("global_sequences", "world_size", "accumulation", "micro_batch")
    if not all(isinstance(plan.get(key), int) for key in keys):
        return None
    total, ranks, accumulation, micro = (plan[key] for key in keys)
    who = f"{ranks} ranks"
    if (shared := plan.get("sequence_parallel") or 1) > 1:
        who = f"{ranks // shared} groups of {shared} ranks"
    return f"{total} = {who} × {accumulation} accumulated × {micro} at once"


def _join(plan: dict[str, Any], *keys: str) -> str | None:
    return " · ".join(str(plan[key]) for key in keys if plan.get(key)) or None


def _millions(count: object) -> str | None:
    number = as_number(count)
    return None if number is None else charts.si(number)


def _text(value: object) -> str:
    """A value as a person would write it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, dict):
        return "none" if not value else str(value)
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return f"{int(value):,}" if abs(value) >= 1000 else str(int(value))
    if isinstance(value, float):
        return charts.plain(value) if math.isfinite(value) else str(value)
    return str(value)


def _verbatim(value: object) -> str:
    """A value as YAML has it, on one line."""
    if isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False, default=str)


def duration(seconds: float) -> str:
    """Seconds as "42 s", "3 min 20 s", "17 min" or "2 h 05 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.0f} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 3600:
        return f"{round(seconds / 60)} min"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
