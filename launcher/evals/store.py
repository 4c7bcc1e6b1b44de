"""Evaluation results on disk: base, tuned, comparison, predictions, and the cache of base results.

Results keep their per-record numbers, so that a comparison can be made again without a model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from launcher.core import runtime
from launcher.core.files import read_json, write_atomic, write_json
from launcher.core.rundir import RunDir
from launcher.evals.comparison.paired import UNSEEDED, Resampling
from launcher.evals.comparison.record_sets import compare_all
from launcher.evals.comparison.slices import Groups
from launcher.evals.judge import WinRate
from launcher.evals.metric import Metric, score_all
from launcher.evals.metrics.exact_match import ExactMatch
from launcher.evals.records import PASSES, Results

VERSION = 2
#: Keys of results and comparisons that are not an objective's.
TAKEN = {
    *("version", "metrics", "records", "generated", "cut", "passes", "further", "step"),
    *(
        "seconds",
        "notes",
        "slices",
        "gap",
        "confidence",
        "sections",
        "answers",
        "watch",
        "base_name",
        "tuned_name",
    ),
}
#: What a line of predictions.jsonl has.
LINE = (
    *("id", "where", "prompt", "reference", "base", "tuned"),
    *("base_match", "tuned_match", "change", "judge"),
)


def write_results(
    path: Path, results: Results, metrics: Sequence[Metric[Any]], **about: Any
) -> dict[str, float | None]:
    """Write one model's scores and per-record results; returns the scores (None = not finite).

    `about` is put beside them as it is (model name, step, seconds...).
    """
    scores = {
        name: score if math.isfinite(score) else None
        for name, score in score_all(metrics, results).items()
    }
    content = {
        "version": VERSION,
        "metrics": scores,
        "records": len(results.losses),
        "generated": len(results.generations),
        "cut": results.cut(),
        **about,
        **_raw(results),
    }
    lines = (f"  {json.dumps(key)}: {_compact(value)}" for key, value in content.items())
    write_atomic(path, "{\n" + ",\n".join(lines) + "\n}\n")
    return scores


def read_results(path: Path, kinds: Mapping[str, type] = PASSES) -> Results | None:
    """What `write_results` wrote; None if the file is absent, damaged or of another version, or
    has passes that are none of `kinds` (`launcher.evals.records.passes`)."""
    raw = read_json(path)
    try:
        return _results(raw, kinds) if raw["version"] == VERSION else None
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def _raw(results: Results) -> dict[str, Any]:
    """Per-record results as JSON: of each pass its fields, with a value for each record."""
    return {
        "passes": {name: _columns(own) for name, own in results.passes.items()},
        "further": {name: _raw(part) for name, part in results.further.items()},
    }


def _results(raw: dict[str, Any], kinds: Mapping[str, type]) -> Results:
    passes = {name: _records(kinds[name], columns) for name, columns in raw["passes"].items()}
    return Results(passes, {name: _results(part, kinds) for name, part in raw["further"].items()})


def _columns(records: Sequence[Any]) -> dict[str, list[Any]]:
    """Records by field, rounded to the `digits` that a field's metadata says."""
    columns = {}
    for f in fields(records[0]) if records else ():
        values = [getattr(record, f.name) for record in records]
        if "digits" in f.metadata:
            values = [round(value, f.metadata["digits"]) for value in values]
        # A diverged model's NaN is not JSON; null stands for it.
        columns[f.name] = list(map(_finite, values))
    return columns


def _records(kind: Any, columns: dict[str, list[Any]]) -> list[Any]:
    numbers = {f.name for f in fields(kind) if f.type == "float"}
    read = {
        name: [math.nan if value is None else float(value) for value in values]
        if name in numbers
        else values
        for name, values in columns.items()
    }
    return [kind(**dict(zip(read, row, strict=True))) for row in zip(*read.values(), strict=True)]


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def cache_path(key: str) -> Path:
    """File of a base model's results; `key` names model, data and decoding."""
    return runtime.cache_dir() / "base-eval" / f"{key}.json"


def write_comparison(
    run: RunDir,
    base: Results,
    tuned: Results,
    metrics: Sequence[Metric[Any]],
    groups: Groups,
    *,
    resampling: Resampling = UNSEEDED,
    notes: Sequence[str] = (),
    lines: Sequence[Mapping[str, Any]] | None = None,
    watch: Callable[[Mapping[str, Any]], Any] | None = None,
    **about: Any,
) -> dict[str, Any]:
    """Compare, write eval/comparison.json and eval/predictions.jsonl, and return the comparison.

    `notes` are put to its own, `about` beside it as it is; `lines` stand for those of
    `predictions`. `watch` makes of the rows of the metrics what is kept under its name.
    """
    comparison = compare_all(base, tuned, metrics, groups, resampling) | about
    if watch is not None:
        comparison["watch"] = watch(comparison["metrics"])
    comparison["notes"] += notes
    write_json(run.eval / "comparison.json", comparison)
    write_predictions(run, predictions(base, tuned, metrics) if lines is None else lines)
    return comparison


def write_predictions(run: RunDir, lines: Iterable[Mapping[str, Any]]) -> None:
    """Write eval/predictions.jsonl, one record a line."""
    text = "".join(_compact(line) + "\n" for line in lines)
    write_atomic(run.eval / "predictions.jsonl", text)


def filled(lines: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of predictions.jsonl with null for what they do not say."""
    return [{**dict.fromkeys(LINE), **line} for line in lines]


def predictions(
    base: Results | None, tuned: Results, metrics: Sequence[Metric[Any]]
) -> list[dict[str, Any]]:
    """Prompt, reference and both answers of each record, in order; what changed by the metrics.

    A match is null where exact_match does not judge; `change` is better, worse, changed or same by
    the first metric of answers; `judge` is 1 where a judge prefers the tuned answer, 0 the base's,
    0.5 for a tie. Without a base, its answer, match and the change are null.
    """
    exact = next((metric for metric in metrics if isinstance(metric, ExactMatch)), None)
    judge = next((metric for metric in metrics if isinstance(metric, WinRate)), None)
    answers = {record.id: record.answer for record in base.generations} if base else {}
    kinds = changes(base, tuned, metrics) if base else {}

    def match(answer: str | None, reference: str) -> bool | None:
        return None if exact is None or answer is None else exact.match(answer, reference)

    return [
        {
            "id": record.id,
            "where": record.where,
            "prompt": record.prompt,
            "reference": record.reference,
            "base": answers.get(record.id),
            "tuned": record.answer,
            "base_match": match(answers.get(record.id), record.reference),
            "tuned_match": match(record.answer, record.reference),
            "change": kinds.get(record.id),
            "judge": judge.shares.get((record.id, record.answer)) if judge else None,
        }
        for record in tuned.generations
    ]


def changes(base: Results, tuned: Results, metrics: Sequence[Metric[Any]]) -> dict[int, str]:
    """Record -> better, worse, changed or same, by the first metric of answers; {} without one."""
    by = next((metric for metric in metrics if metric.needs == "generation"), None)
    before, after = ({r.id: r for r in side.generations} for side in (base, tuned))
    ids = sorted(before.keys() & after.keys())
    if by is None or not ids:
        return {}
    sides = by.paired(*([side[i] for i in ids] for side in (before, after)))
    values = [by.each(side) for side in sides]
    sign = 1 if by.higher_is_better else -1
    found = {}
    for i, old, new in zip(ids, *values, strict=True):
        gain = sign * (new - old)
        changed = "same" if before[i].answer == after[i].answer else "changed"
        found[i] = "better" if gain > 0 else "worse" if gain < 0 else changed
    return found


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
