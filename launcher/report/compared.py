"""What pages show of a comparison: rows with intervals, slices, and answers side by side."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import groupby
from typing import Any

from launcher.report import charts, sections, summary

#: answers on a page of comparisons that are not chosen, and most of one kind beside them.
SHOWN, MOST = 20, 100
#: kind -> what a page calls it.
KINDS = {
    "better": "got better",
    "worse": "got worse",
    "changed": "only changed",
    "same": "unchanged",
}
#: (text, whether only this side has it), one after the other.
Segments = list[tuple[str, bool]]

#: words and signs of a longer answer are not compared: that takes the square of their number.
LONGEST = 800
#: less alike answers have nothing in common that is worth showing.
ALIKE = 0.5


def model(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """All that a page of comparisons shows of one model beside the first."""
    predictions = comparison.get("answers", [])
    shown = answers(predictions, SHOWN)
    return {
        "names": (comparison["base_name"], comparison["tuned_name"]),
        "outcome": summary.outcome(comparison),
        "verdict": summary.sentence(comparison),
        "confidence": f"{100 * comparison.get('confidence', 0.95):g}",
        "rows": rows(comparison),
        "notes": comparison.get("notes", []),
        "slices": slices(comparison),
        "beyond": beyond(comparison),
        "sections": sections.view(comparison),
        "samples": shown,
        "kinds": kinds(shown),
        "num_first": min(SHOWN, len(predictions)),
        "num_predictions": len(predictions),
    }


def rows(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a metric."""
    return [row(name, found) for name, found in comparison.get("metrics", {}).items()]


def row(name: str, found: Mapping[str, Any], widest: float | None = None) -> dict[str, Any]:
    """A metric's comparison as text; `widest`: the change that reaches the end of its plot."""
    unit = found.get("unit", "")
    return {
        "name": name,
        "better_is": "higher" if found.get("higher_is_better", True) else "lower",
        "base": summary.number(found["base"], unit),
        "tuned": summary.number(found["tuned"], unit),
        "difference": summary.number(found["difference"], unit, signed=True),
        "interval": summary.interval(found),
        "verdict": found["verdict"],
        "records": found["records"],
        "improved": found.get("improved"),
        "worsened": found.get("worsened"),
        "needed": summary.needed(found),
        "plot": charts.interval_plot(found, widest),
    }


def beyond(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """What the verdict does not rest on: `sets` of (title, rows), and the `flags` they raise."""
    titles = {"general": "General records: what is forgotten"}
    sets = [
        (titles.get(name, f"New records: {name.removeprefix('new.')}"), rows(part))
        for name, part in comparison.get("further", {}).items()
    ]
    gap = comparison.get("gap")
    if gap:
        lower = {**gap, "higher_is_better": False}
        sets.append(("Held-out loss minus loss on training records", [row("gap", lower)]))
    return {"sets": sets, "flags": summary.hacking(comparison) + summary.flags(comparison)}


def slices(comparison: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One table a kind of slice: `by`, `metric`, `rows` on one scale; `small` are not judged."""
    metric = summary.headline_metric(comparison) if comparison.get("metrics") else None
    tables = []
    for by, group in groupby(comparison.get("slices", []), key=lambda part: part["by"]):
        parts = list(group)
        judged = [part for part in parts if metric in part["metrics"]]
        others = [part for part in parts if set(part["metrics"]) - {metric}]
        widest = max((charts.reach(part["metrics"][metric]) for part in judged), default=0.0)
        tables.append(
            {
                "by": by,
                "metric": metric,
                "rows": [row(part["value"], part["metrics"][metric], widest) for part in judged],
                "others": [{"name": part["value"], "rows": rows(part)} for part in others],
                "small": [(p["value"], p["records"]) for p in parts if not p["metrics"]],
            }
        )
    return tables


def answers(predictions: Sequence[Mapping[str, Any]], first: int) -> list[dict[str, Any]]:
    """The `first` records as they come, then all others that got better or worse."""
    shown = list(predictions[:first])
    for kind in ("better", "worse"):
        rest = (line for line in predictions[first:] if line.get("change") == kind)
        shown += [line for line, _ in zip(rest, range(MOST), strict=False)]
    return [_answer(line) for line in shown]


def kinds(shown: Iterable[Mapping[str, Any]]) -> list[tuple[str, str, int]]:
    """(kind, its name, how many) of the answers that are shown, for the filter."""
    found = [answer["kind"] for answer in shown]
    return [(kind, name, found.count(kind)) for kind, name in KINDS.items() if kind in found]


def _answer(line: Mapping[str, Any]) -> dict[str, Any]:
    base, tuned = line.get("base"), line.get("tuned")
    sides = []
    if isinstance(tuned, str):
        texts = marked(base, tuned) if isinstance(base, str) else (None, [(tuned, False)])
        for key, segments in zip(("base", "tuned"), texts, strict=True):
            if segments is not None:
                sides.append({"key": key, "segments": segments, "match": line.get(f"{key}_match")})
    kind = line.get("change")
    return {
        "where": line.get("where") or f"record {line.get('id', '')}",
        "prompt": line.get("prompt", ""),
        "reference": line.get("reference", ""),
        "sides": sides,
        "kind": kind if kind in KINDS else "open",
        "label": KINDS.get(str(kind), ""),
    }


def marked(one: str, other: str) -> tuple[Segments, Segments]:
    """Both texts in segments; unmarked where they are equal, very long or altogether different."""
    words, others = _words(one), _words(other)
    plain = [(one, False)], [(other, False)]
    if one == other or max(len(words), len(others)) > LONGEST:
        return plain
    matcher = SequenceMatcher(None, words, others, autojunk=False)
    if matcher.ratio() < ALIKE:
        return plain
    steps = matcher.get_opcodes()
    left = _joined((words[a:b], kind != "equal") for kind, a, b, _, _ in steps)
    right = _joined((others[a:b], kind != "equal") for kind, _, _, a, b in steps)
    return left, right


def _words(text: str) -> list[str]:
    return re.findall(r"\s+|\w+|[^\w\s]", text)


def _joined(parts: Iterable[tuple[list[str], bool]]) -> Segments:
    return [("".join(words), only_here) for words, only_here in parts if words]
