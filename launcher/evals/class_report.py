"""What a classifier confuses: counts by class for the report, and what guessing would reach."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from launcher.config.classes import Classes
from launcher.evals.metric import Metric
from launcher.evals.records import ClassRecord


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


def changed(
    base: Sequence[ClassRecord],
    tuned: Sequence[ClassRecord],
    classes: Classes,
    where: Callable[[int], str],
) -> dict[str, list[dict[str, str]]]:
    """Records that got better, worse, or other labels that are wrong too; `where` says file:line.

    Both sides have the same records in the same order.
    """
    found: dict[str, list[dict[str, str]]] = {"better": [], "worse": [], "changed": []}
    for one, other in zip(base, tuned, strict=True):
        if one.answer == other.answer:
            continue
        gain = (other.answer == other.truth) - (one.answer == one.truth)
        labels = {"reference": one.truth, "base": one.answer, "tuned": other.answer}
        named = {side: classes.text(numbers) for side, numbers in labels.items()}
        kind = "better" if gain > 0 else "worse" if gain else "changed"
        found[kind].append({"where": where(one.id), **named})
    return found


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


def told(guess: dict[str, Any]) -> str:
    """`guessing` for a terminal."""
    scores = ", ".join(f"{name} {value:.3f}" for name, value in guess["metrics"].items())
    return f"always {guess['label']!r}, the most frequent label in training: {scores or 'no score'}"
