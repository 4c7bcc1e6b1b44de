"""What a classifier confuses: counts by class for the report, and what guessing would reach."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from launcher.evals.metric import Metric
from launcher.evals.records import Results
from launcher.objectives.classify.classes import Classes
from launcher.objectives.classify.records import ClassRecord, class_records
from launcher.report import summary

#: confusions listed, the most frequent.
MOST = 10


def report(records: Sequence[ClassRecord], classes: Classes) -> dict[str, Any]:
    """`classes`: of each class that occurs name, precision, recall, f1 and support; `confusion`:
    [true class, named class, records] where there are any, for one class a text."""
    rows = []
    for number in sorted({i for r in records for i in (*r.truth, *r.answer)}):
        named = [r for r in records if number in r.answer]
        support = sum(number in r.truth for r in records)
        right = sum(number in r.truth for r in named)
        rows.append(
            {
                "name": classes.text([number]),
                "precision": right / len(named) if named else None,
                "recall": right / support if support else None,
                "f1": 2 * right / (len(named) + support),
                "support": support,
            }
        )
    pairs = Counter((classes.text(r.truth), classes.text(r.answer)) for r in records)
    confusion = [] if classes.multi_label else [[*pair, pairs[pair]] for pair in sorted(pairs)]
    return {"classes": rows, "confusion": confusion}


def answers(
    base: Results,
    tuned: Results,
    classes: Classes,
    where: Callable[[int], str],
    text: Callable[[int], str] = lambda record: "",
) -> list[dict[str, Any]]:
    """Each record's labels as lines of eval/predictions.jsonl, with what changed.

    Both sides have the same records in the same order; `where` says file:line, `text` what was
    asked.
    """
    lines = []
    for one, other in zip(class_records(base), class_records(tuned), strict=True):
        before, after = one.answer == one.truth, other.answer == other.truth
        same = "same" if one.answer == other.answer else "changed"
        lines.append(
            {
                "id": other.id,
                "where": where(other.id),
                "prompt": text(other.id),
                "reference": classes.text(other.truth),
                "base": classes.text(one.answer),
                "tuned": classes.text(other.answer),
                "base_match": before,
                "tuned_match": after,
                "change": same if before == after else "better" if after else "worse",
            }
        )
    return lines


def guessing(
    records: Sequence[ClassRecord], classes: Classes, metrics: Sequence[Metric[Any]]
) -> dict[str, Any]:
    """Scores of always naming the label that is most frequent in training.

    The other reference point beside the base, whose head is untrained.
    """
    always = [replace(r, predicted=classes.usual, probability=1.0, rejected=False) for r in records]
    named = ("accuracy", "in_scope_accuracy", "f1_macro", "f1_micro")
    scores = {m.name: m.score(always) for m in metrics if m.name in named}
    kept = {name: score for name, score in scores.items() if math.isfinite(score)}
    return {"label": classes.text(classes.usual), "metrics": kept}


def sections(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The report's section of what `report` and `guessing` have found; classes by F1, worst first;
    none without classes."""
    found, guess = about["class_report"], about.get("guessing")
    classes = sorted(found["classes"], key=lambda one: (one["f1"], one["name"]))
    if not classes:
        return []
    blocks: list[dict[str, Any]] = []
    if guess:
        scores = (
            f"{name} {summary.number(value, 'share')}" for name, value in guess["metrics"].items()
        )
        text = f"Always naming {guess['label']!r}, the most frequent in training"
        blocks.append({"text": f"{text}: {', '.join(scores)}."})
    support = {one["name"]: one["support"] for one in classes}
    if found["confusion"]:
        blocks.append(
            {
                "title": "Confusion",
                "names": sorted(support),
                "cells": found["confusion"],
                "rows_are": "true classes",
                "columns_are": "what the model named",
            }
        )
    wrong = [cell for cell in found["confusion"] if cell[0] != cell[1]]
    wrong.sort(key=lambda cell: (-cell[2], cell[:2]))
    if wrong:
        rows = [[true, named, f"{count} of {support[true]}"] for true, named, count in wrong[:MOST]]
        columns = ["Is", "Named", "Records"]
        blocks.append({"title": "Most confused", "columns": columns, "rows": rows})
    blocks.append(
        {
            "title": "Every class, worst first",
            "folded": True,
            "columns": ["Class", "Precision", "Recall", "F1", "Records"],
            "rows": [
                [
                    one["name"],
                    *(summary.number(one[key], "share") for key in ("precision", "recall", "f1")),
                    str(one["support"]),
                ]
                for one in classes
            ],
        }
    )
    return [{"title": "Classes", "blocks": blocks}]


def told(guess: dict[str, Any]) -> str:
    """`guessing` for a terminal."""
    scores = ", ".join(f"{name} {value:.3f}" for name, value in guess["metrics"].items())
    return f"always {guess['label']!r}, the most frequent label in training: {scores or 'no score'}"
