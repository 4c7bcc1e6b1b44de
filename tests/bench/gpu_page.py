"""The page of a pass: results as Markdown, fit to be pasted into docs/performance.md."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

Result = dict[str, Any]

#: Column -> how a measurement fills it.
COLUMNS = (
    ("tokens/s", "{tokens_per_s:,.0f}"),
    ("±", "{spread:.1%}"),
    ("target tokens/s", "{target_tokens_per_s:,.0f}"),
    ("MFU of measured peak", "{mfu_measured:.1%}"),
    ("MFU of data sheet", "{mfu_data_sheet:.1%}"),
    ("peak GiB", "{memory_gib:.1f}"),
    ("micro", "{micro}"),
    ("ZeRO", "{zero}"),
    ("attention", "{attention}"),
    ("first step s", "{first_step_s:.1f}"),
)


def page(facts: Result, results: Sequence[Result]) -> str:
    """Markdown of all parts that have results so far. `facts` are those of the pass."""
    by_part: dict[str, list[Result]] = {}
    for result in results:
        by_part.setdefault(result["part"], []).append(result)
    lines = ["# GPU evidence", ""]
    lines += [f"{facts['command']}, {facts['date']}, {facts['minutes']:g} minutes allowed.", ""]
    lines += ["| part | result | seconds |", "|---|---|---|"]
    for summary in by_part.get("summary", []):
        lines.append(f"| {summary['name']} | {summary['text']} | {summary['seconds']:.0f} |")
    for part, write in _SECTIONS.items():
        if found := by_part.get(part):
            lines += ["", f"## {part.capitalize()}", "", *write(found, by_part)]
    return "\n".join(lines) + "\n"


def stamp() -> str:
    """Today, in UTC."""
    return time.strftime("%Y-%m-%d", time.gmtime())


def _cell(template: str, row: Result) -> str:
    """A value of the row, or a dash where there is none."""
    name = template[1:].partition(":")[0].rstrip("}")
    return "-" if row.get(name) is None else template.format(**row)


def _table(
    rows: Iterable[Result], first: str, more: Sequence[tuple[str, Callable[..., str]]]
) -> Any:
    heads = [first, *(name for name, _ in more), *(name for name, _ in COLUMNS)]
    yield f"| {' | '.join(heads)} |"
    yield "|---" * len(heads) + "|"
    for row in rows:
        cells = [row["name"], *(make(row) for _, make in more)]
        if "tokens_per_s" in row:
            cells += [_cell(template, row) for _, template in COLUMNS]
        else:
            said = _problem(row)
            cells += [said.replace("|", "/").replace("\n", " "), *["-"] * (len(COLUMNS) - 1)]
        yield f"| {' | '.join(cells)} |"


def _problem(result: Result) -> str:
    return result.get("error") or f"left out: {result.get('left_out', '-')}"


def _ratio(key: str, base: Result | None) -> Callable[[Result], str]:
    def against(row: Result) -> str:
        if base is None or not row.get(key) or not base.get(key):
            return "-"
        return f"{row[key] / base[key]:.2f}x"

    return against


def _base(found: Sequence[Result], parts: dict[str, list[Result]]) -> Result | None:
    name = found[0].get("base")
    rows = parts.get("rows", [])
    return next((row for row in rows if row["name"] == name and "tokens_per_s" in row), None)


def _machine(found: Sequence[Result], parts: dict[str, list[Result]]) -> Iterable[str]:
    if "error" in found[0]:
        yield f"**{found[0]['error']}**"
        yield ""
    for key, value in found[0].items():
        if key in ("part", "name", "seconds", "error", "output"):
            continue
        if key.endswith("_flops"):
            key, value = (
                f"{key.removesuffix('_flops')}, TFLOP/s",
                f"{value / 1e12:.4g}" if value else "-",
            )
        elif key == "bandwidth":
            key, value = "memory copied, TB/s", f"{value / 1e12:.3g}"
        elif isinstance(value, dict):
            value = ", ".join(f"{name} {version}" for name, version in value.items())
        elif isinstance(value, float):
            value = f"{value:.4g}"
        yield f"- {key}: {value}"


def _plain(found: Sequence[Result], parts: dict[str, list[Result]]) -> Iterable[str]:
    for result in found:
        yield f"- {result['name']}: {result.get('text') or _problem(result)}"


def _rows(found: Sequence[Result], parts: dict[str, list[Result]]) -> Iterable[str]:
    yield from _table(found, "model", ())


def _ablations(found: Sequence[Result], parts: dict[str, list[Result]]) -> Iterable[str]:
    base = _base(found, parts)
    yield f"Base: {found[0].get('base', '-')}. One thing is changed in each row."
    yield ""
    more = (
        ("changed", lambda row: f"`{row['changed']}`" if row.get("changed") else "-"),
        ("speed", _ratio("tokens_per_s", base)),
        ("memory", _ratio("memory_gib", base)),
    )
    yield from _table([*([base] if base else []), *found], "ablation", more)


def _peers(found: Sequence[Result], parts: dict[str, list[Result]]) -> Iterable[str]:
    base = _base(found, parts)
    rows = [*([{**base, "name": "launcher"}] if base else []), *found]
    yield f"The same work: {found[0].get('base', '-')}. Speed is that of the row by the launcher's."
    yield ""
    more = (("speed", _ratio("tokens_per_s", base)), ("memory", _ratio("memory_gib", base)))
    yield from _table(rows, "tool", more)


def _profiles(found: Sequence[Result], parts: dict[str, list[Result]]) -> Iterable[str]:
    for result in found:
        yield f"### {result['name']}"
        yield ""
        if "profile" not in result:
            yield from (_problem(result), "")
            continue
        profile = result["profile"]
        yield (
            f"{profile['steps']} steps in {profile['wall_s']:.3f} s under the profiler; kernels"
            f" {profile['kernels_s']:.3f} s ({profile['kernels_s'] / profile['wall_s']:.0%}),"
            f" {profile['launches']:,} launches."
        )
        yield ""
        yield "| kind | share of kernel time |"
        yield "|---|---|"
        for kind, share in profile["kinds"].items():
            yield f"| {kind} | {share:.1%} |"
        yield ""
        yield "| kernel | kind | share | calls |"
        yield "|---|---|---|---|"
        for top in profile["top"]:
            name = top["name"].replace("|", "/")[:100]
            yield f"| `{name}` | {top['kind']} | {top['share']:.1%} | {top['calls']:,} |"
        yield ""


_SECTIONS = {
    "machine": _machine,
    "smoke": _plain,
    "tests": _plain,
    "rows": _rows,
    "ablations": _ablations,
    "peers": _peers,
    "profiles": _profiles,
}
