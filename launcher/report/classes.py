"""What a classifier names right and what it confuses, as the page shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.report import summary

#: more classes are drawn as a map without names.
NAMED = 25
#: confusions listed, the most frequent.
MOST = 10


def view(comparison: Mapping[str, Any]) -> dict[str, Any] | None:
    """`rows` of classes, worst F1 first; `confused` pairs; a `matrix` or, of many classes, a `map`.

    None if the comparison is of no classifier.
    """
    report = comparison.get("class_report")
    if not report or not report["classes"]:
        return None
    classes = sorted(report["classes"], key=lambda one: (one["f1"], one["name"]))
    support = {one["name"]: one["support"] for one in classes}
    cells = {(true, named): count for true, named, count in report["confusion"]}
    wrong = [(*pair, count) for pair, count in cells.items() if pair[0] != pair[1]]
    wrong.sort(key=lambda cell: (-cell[2], cell[:2]))
    names = sorted(support)
    few = len(names) <= NAMED
    return {
        "rows": [_row(one) for one in classes],
        "confused": [
            {"actual": true, "named": named, "count": count, "of": support.get(true, count)}
            for true, named, count in wrong[:MOST]
        ],
        "num_confused": len(wrong),
        "matrix": _matrix(names, cells, support) if cells and few else None,
        "map": None if few or not cells else _map(names, cells, support),
        "guessing": _guessing(comparison.get("guessing")),
    }


def _row(one: Mapping[str, Any]) -> dict[str, Any]:
    scores = {key: summary.number(one[key], "share") for key in ("precision", "recall", "f1")}
    return {"name": one["name"], "support": one["support"], "share": one["f1"], **scores}


def _matrix(
    names: list[str], cells: Mapping[tuple[str, str], int], support: Mapping[str, int]
) -> dict[str, Any]:
    """Rows of (name, cells of (count, share of the row, right)); columns in the same order."""

    def cell(true: str, named: str) -> tuple[int, float, bool]:
        count = cells.get((true, named), 0)
        return count, _share(true, named, cells, support), true == named

    return {"names": names, "rows": [(true, [cell(true, n) for n in names]) for true in names]}


def _map(
    names: list[str], cells: Mapping[tuple[str, str], int], support: Mapping[str, int]
) -> dict[str, Any]:
    """Cells that are not empty, by row and column."""
    place = {name: i for i, name in enumerate(names)}
    found = [
        {
            "row": place[true],
            "column": place[named],
            "share": max(_share(true, named, cells, support), 0.4),
            "right": true == named,
            "said": f"{true} named {named}: {count} of {support[true]}",
        }
        for (true, named), count in sorted(cells.items())
        if true in place and named in place
    ]
    return {"size": len(names), "cells": found}


def _share(
    true: str, named: str, cells: Mapping[tuple[str, str], int], support: Mapping[str, int]
) -> float:
    return round(cells.get((true, named), 0) / support[true], 3) if support[true] else 0.0


def _guessing(guess: Mapping[str, Any] | None) -> str | None:
    """What always naming the most frequent label would reach."""
    if not guess:
        return None
    scores = (
        f"{name} {summary.number(value, 'share')}" for name, value in guess["metrics"].items()
    )
    return f"Always naming {guess['label']!r}, the most frequent in training: {', '.join(scores)}."
