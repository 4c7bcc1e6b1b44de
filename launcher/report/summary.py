"""A comparison in words: one sentence, and a table for the terminal. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]

#: a difference is told as out of reach if more than so many times the scored records decide it.
REACH = 20


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
    """What is said of the tuned model over all metrics: better, worse, mixed or no evidence."""
    rows = comparison["metrics"].values()
    verdicts = {row["verdict"] for row in rows if row.get("decides", True)}
    if {"better", "worse"} <= verdicts:
        return "mixed"
    return next((word for word in ("better", "worse") if word in verdicts), "no evidence")


def headline_metric(comparison: Mapping[str, Any], verdict: str | None = None) -> str | None:
    """The metric to quote, of those with this verdict if one is given; None without any.

    One that leads comes first, then what is scored on generated answers, then the order of
    `eval.metrics`.
    """
    metrics = comparison["metrics"]
    chosen = [
        name
        for name, row in metrics.items()
        if verdict in (None, row["verdict"]) and row.get("decides", True)
    ]
    chosen.sort(
        key=lambda name: (
            not metrics[name].get("leads"),
            metrics[name].get("needs") != "generation",
        )
    )
    return chosen[0] if chosen else None


def sentence(comparison: Mapping[str, Any]) -> str:
    """The verdict in a sentence or two, with the numbers of a metric that it rests on."""
    result = outcome(comparison)
    name = headline_metric(comparison, "better" if result == "mixed" else result)
    if name is None:
        return "Nothing was compared: no metric has results for both models."
    tuned = comparison.get("tuned_name", "the tuned model")
    base = comparison.get("base_name", "the base")
    starts = {
        "better": f"{tuned} is better than {base}",
        "worse": f"{tuned} is worse than {base}",
        "mixed": f"{tuned} is better than {base} in some metrics and worse in others",
        "no evidence": f"There is no evidence that {tuned} differs from {base}",
    }
    text = f"{starts[result]}: {_moved(comparison, name)}"
    if result == "mixed":
        worse = headline_metric(comparison, "worse")
        text += f"; {_moved(comparison, str(worse))}"
    text += "." + _unmoved(comparison, result)
    return text if "tuned_name" in comparison else text[0].upper() + text[1:]


def _moved(comparison: Mapping[str, Any], name: str) -> str:
    """From where to where a metric went, with its interval."""
    row = comparison["metrics"][name]
    unit = row.get("unit", "")
    change = number(row["difference"], unit, signed=True)
    records = f"{row['records']} held-out record{'' if row['records'] == 1 else 's'}"
    return (
        f"{name} went from {number(row['base'], unit)} to {number(row['tuned'], unit)}"
        f" (change {change}, {_percent(comparison)} interval {interval(row)}, {records})"
    )


def _unmoved(comparison: Mapping[str, Any], result: str) -> str:
    """What users look at first, accuracy and generated answers, where a verdict says nothing of it,
    lest it promise too much."""
    still = [
        f"{name} ({number(row['base'], row.get('unit', ''))} to"
        f" {number(row['tuned'], row.get('unit', ''))})"
        for name, row in comparison["metrics"].items()
        if (name == "accuracy" or row.get("needs") == "generation")
        and row["verdict"] == "no evidence"
    ]
    if result == "no evidence" or not still:
        return ""
    return f" No evidence of a change in {', '.join(still)}."


def needed(row: Row) -> str:
    """How many records would decide an undecided difference; "" if there is none to decide."""
    count = row.get("needed")
    if not count:
        return ""
    if count > REACH * row["records"]:
        return f"too small a difference to decide: about {_rounded(count)} records would be needed"
    return f"about {_rounded(count)} would decide"


def _rounded(count: int) -> str:
    """A count to two digits, for it is an estimate."""
    tens = 10 ** max(0, len(str(count)) - 2)
    return f"{-(-count // tens) * tens:,}"


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


def hacking(comparison: Mapping[str, Any]) -> list[str]:
    """The measures that fell while the reward rose, a line each."""
    found = comparison.get("watch") or {}
    rows = {name: comparison["metrics"].get(name) for name in found.get("falls", ())}
    return [
        f"reward hacking? {_changed(found['reward']['name'], found['reward'])} of"
        f" {found['reward']['on']}, while {_changed(name, row)} of held-out answers"
        for name, row in rows.items()
        if row
    ]


def _changed(name: str, row: Row) -> str:
    unit = row.get("unit", "")
    verb = "rises" if (row["difference"] or 0) > 0 else "falls"
    numbers = f"from {number(row['base'], unit)} to {number(row['tuned'], unit)}"
    return f"{name} {verb} {numbers} (95 % interval {interval(row)})"


def _percent(comparison: Mapping[str, Any]) -> str:
    return f"{100 * comparison.get('confidence', 0.95):g} %"
