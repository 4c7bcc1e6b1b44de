"""A comparison in words: one sentence, and a table for the terminal. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]

#: what the headline of a comparison can say about the tuned model.
OUTCOMES = ("better", "worse", "mixed", "no evidence")


def number(value: float | None, unit: str = "", *, signed: bool = False) -> str:
    """A score for people: four digits, or per cent for a share; "-" if there is none."""
    if value is None:
        return "-"
    sign = "+" if signed else ""
    if unit == "share":
        text = f"{100 * value:{sign}.1f}"
        return f"{text} pts" if signed else f"{text} %"
    size = abs(value)
    if value == 0 or 1e-3 <= size < 1e4:
        decimals = max(0, 4 - len(str(int(size)))) if size >= 1 else 4
        return f"{value:{sign}.{decimals}f}"
    return f"{value:{sign}.3g}"


def interval(row: Row) -> str:
    """The interval of a metric's difference as text."""
    low, high = row["interval"]
    if low is None or high is None:
        return "-"
    unit = row.get("unit", "")
    ends = [number(end, unit, signed=True) for end in (low, high)]
    return f"{ends[0].removesuffix(' pts')} to {ends[1]}"


def outcome(comparison: Mapping[str, Any]) -> str:
    """One of `OUTCOMES` over all metrics."""
    verdicts = {row["verdict"] for row in comparison["metrics"].values()}
    if {"better", "worse"} <= verdicts:
        return "mixed"
    return next((word for word in ("better", "worse") if word in verdicts), "no evidence")


def headline_metric(comparison: Mapping[str, Any]) -> str | None:
    """The metric that the sentence quotes: the first on generated answers, else the first."""
    metrics = comparison["metrics"]
    generated = (name for name, row in metrics.items() if row.get("needs") == "generation")
    return next(generated, next(iter(metrics), None))


def sentence(comparison: Mapping[str, Any]) -> str:
    """The verdict in one sentence, with its most telling number."""
    name = headline_metric(comparison)
    if name is None:
        return "Nothing was compared: no metric has results for both models."
    row = comparison["metrics"][name]
    unit, result = row.get("unit", ""), outcome(comparison)
    tuned = comparison.get("tuned_name", "the tuned model")
    base = comparison.get("base_name", "the base")
    starts = {
        "better": f"{tuned} is better than {base}",
        "worse": f"{tuned} is worse than {base}",
        "mixed": f"{tuned} is better than {base} in some metrics and worse in others",
        "no evidence": f"There is no evidence that {tuned} differs from {base}",
    }
    numbers = f"{name} went from {number(row['base'], unit)} to {number(row['tuned'], unit)}"
    change = number(row["difference"], unit, signed=True)
    records = f"{row['records']} held-out record{'' if row['records'] == 1 else 's'}"
    details = f"change {change}, {_percent(comparison)} interval {interval(row)}, {records}"
    text = f"{starts[result]}: {numbers} ({details})."
    return text if "tuned_name" in comparison else text[0].upper() + text[1:]


def table(comparison: Mapping[str, Any]) -> str:
    """The comparison as aligned plain text, one line a metric."""
    header = (
        "metric",
        "base",
        "tuned",
        "difference",
        f"{_percent(comparison)} interval",
        "verdict",
    )
    lines = [header]
    for name, row in comparison["metrics"].items():
        unit = row.get("unit", "")
        lines.append(
            (
                name,
                number(row["base"], unit),
                number(row["tuned"], unit),
                number(row["difference"], unit, signed=True),
                interval(row),
                row["verdict"],
            )
        )
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if 1 <= column <= 4 else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def beyond(comparison: Mapping[str, Any]) -> list[str]:
    """Blocks of text on what the verdict does not rest on: further sets, then the flags."""
    parts = comparison.get("further", {}).items()
    return [f"{name}, not in the verdict\n{table(part)}" for name, part in parts] + flags(
        comparison
    )


def flags(comparison: Mapping[str, Any]) -> list[str]:
    """What got worse outside the held-out records, a line each: forgetting, new sets, the gap."""
    lines = []
    for name, part in comparison.get("further", {}).items():
        worse = [
            f"{metric} {number(row['base'], row['unit'])} -> {number(row['tuned'], row['unit'])}"
            for metric, row in part["metrics"].items()
            if row["verdict"] == "worse"
        ]
        if worse:
            start = "forgetting: general" if name == "general" else f"{name}:"
            lines.append(f"{start} {', '.join(worse)}, worse")
    gap = comparison.get("gap")
    if gap and gap["verdict"] == "worse":
        grown = f"{number(gap['difference'], signed=True)} ({interval(gap)})"
        lines.append(
            "gap: held-out loss minus that of training records "
            f"{number(gap['base'])} -> {number(gap['tuned'])}, grown by {grown}"
        )
    return lines


def _percent(comparison: Mapping[str, Any]) -> str:
    return f"{100 * comparison.get('confidence', 0.95):g} %"
