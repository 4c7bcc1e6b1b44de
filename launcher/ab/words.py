"""A result in words for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]

#: Comments shown; --json has all.
SHOWN = 10


def told(made: Result) -> str:
    """The result as text, the verdict last."""
    parts = [headline(made), "", f"A  {made['a']}", f"B  {made['b']}", ""]
    parts += _study(made) if made["kind"] == "study" else _traffic(made)
    parts += _comments(made["comments"])
    return "\n".join([*parts, f"verdict: {made['verdict']}"])


def headline(made: Result) -> str:
    """What was found, in one sentence."""
    if made["win_rate"] is None:
        return "Nobody has preferred one to the other yet."
    low, high = made["interval"]
    what = "prompts with a preference" if made["kind"] == "study" else "pairs of users that differ"
    decided = made["wins"] + made["losses"]
    text = (
        f"B wins {made['win_rate']:.1%} of {decided:g} {what}"
        f" (95 % confidence sequence {low:.1%} to {high:.1%}, p = {p_text(made['p_value'])})."
    )
    if made["needed"]:
        text += f" At this rate about {made['needed']:,} would decide."
    return text


def p_text(p: float) -> str:
    """A p-value in two digits."""
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def agreement_text(alpha: float | None) -> str:
    """Krippendorff's alpha with the words that he gives it (2004)."""
    if alpha is None:
        return "not known: no prompt has two votes, or all are the same"
    word = "good" if alpha >= 0.8 else "tolerable" if alpha >= 0.667 else "low"
    return f"Krippendorff's alpha {alpha:.2f} ({word})"


def bias_text(p: float) -> str:
    """What a p-value of a check of the set-up says."""
    return f"p = {p_text(p)}, {'look into it' if p < 0.05 else 'nothing odd'}"


def seconds(value: float | None) -> str:
    """Seconds in two or three digits."""
    return "-" if value is None else f"{value:.2f}" if value < 10 else f"{value:.0f}"


def _study(made: Result) -> list[str]:
    total, place = made["votes"], made["position"]
    rows = [
        (one["name"], one["a"], one["b"], one["tie"], one["bad"], seconds(one["median_s"]))
        for one in made["judges"]
    ]
    if len(rows) > 1:
        rows.append(("all", total["a"], total["b"], total["tie"], total["bad"], ""))
    return [
        _table([("judge", "A", "B", "tie", "both bad", "median s"), *rows]),
        "",
        f"prompts    {made['prompts_judged']:,} of {made['prompts']:,} judged,"
        f" {made['equal']:,} without a preference",
        f"position   left chosen {place['left']:,} times, right {place['right']:,}"
        f" ({bias_text(place['p_value'])})",
        f"agreement  {agreement_text(made['agreement']['alpha'])},"
        f" {made['agreement']['prompts']:,} prompts with several votes",
    ]


def _traffic(made: Result) -> list[str]:
    columns = {
        "users": "users",
        "requests": "requests",
        "errors": "errors",
        "median_first_s": "first s",
        "median_total_s": "median s",
        "feedback": "feedback",
        "mean_feedback": "mean",
    }
    rows = []
    for side, row in made["sides"].items():
        cells = [seconds(row[key]) if "_s" in key else row[key] for key in columns]
        mean = row["mean_feedback"]
        rows.append((side.upper(), *cells[:-1], "-" if mean is None else f"{mean:.3f}"))
    return [
        _table([("", *columns.values()), *rows]),
        "",
        f"split      {made['share']:.0%} of users were to get B"
        f" ({bias_text(made['split']['p_value'])})",
    ]


def _comments(comments: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = []
    for one in comments[-SHOWN:]:
        who = f"{one['name']} on {_short(one['prompt'])!r}" if "name" in one else one["choice"]
        lines.append(f"  {who}: {_short(one['comment'])}")
    left_out = len(comments) - len(lines)
    more = [f"  and {left_out:,} more: --json"] if left_out else []
    return ["", "comments", *lines, *more, ""] if lines else [""]


def _short(text: str, width: int = 60) -> str:
    line = " ".join(text.split())
    return line if len(line) <= width else f"{line[: width - 1]}…"


def _table(rows: Iterable[Sequence[object]]) -> str:
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = (
        [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
        for row in cells
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)
