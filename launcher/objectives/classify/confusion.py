"""What a classifier confuses: counts by class for the report, and what guessing would reach."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from launcher.evals.metric import Metric
from launcher.evals.records import ClassRecord, Results
from launcher.objectives.classify.classes import Classes


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
    for one, other in zip(base.classes, tuned.classes, strict=True):
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


def told(guess: dict[str, Any]) -> str:
    """`guessing` for a terminal."""
    scores = ", ".join(f"{name} {value:.3f}" for name, value in guess["metrics"].items())
    return f"always {guess['label']!r}, the most frequent label in training: {scores or 'no score'}"
