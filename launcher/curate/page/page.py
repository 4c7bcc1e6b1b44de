"""Builds the page of a data report: one self-contained file, readable without a script."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launcher.curate.page import plots
from launcher.curate.records.texts import plural
from launcher.report import charts, renderer
from launcher.report.view import duration

_TEMPLATE = Path(__file__).with_name("page.html.j2")
VERDICTS = ("fail", "warn", "pass", "skipped")
#: records of a cluster side by side.
SIDE_BY_SIDE = 4
#: keys of a report under which records are named.
_PLACES = ("where", "why", "train", "eval", "evalset", "name")


def render(report: Mapping[str, Any]) -> str:
    """The page of a report (see docs/curate.md for its fields). Nothing in it loads or runs."""
    report = shortened(report)
    return renderer.render(_TEMPLATE, {"report": report, **view(report)}, visible=renderer.visible)


def shortened(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report without the folder that all its files share where it names records: only its
    list of inputs says it."""
    names = [entry["name"] for entry in report["inputs"]]
    folders = [os.path.dirname(name) for name in names if name.startswith("/")]
    shared = os.path.commonpath(folders).rstrip("/") if folders else ""
    if not shared:
        return dict(report)

    def short(value: Any, key: str) -> Any:
        if isinstance(value, str):
            return value.replace(f"{shared}/", "") if key in _PLACES else value
        if isinstance(value, Mapping):
            return {name: short(part, name) for name, part in value.items()}
        return [short(part, key) for part in value] if isinstance(value, list) else value

    return {key: part if key == "inputs" else short(part, "") for key, part in report.items()}


def view(report: Mapping[str, Any]) -> dict[str, Any]:
    """Everything the template shows, as text and positions."""
    rules = sorted(report["rules"], key=lambda rule: VERDICTS.index(rule["verdict"]))
    files = [entry["name"] for entry in report["inputs"] if entry["split"] == "train"]
    names = [name.rstrip("/").rpartition("/")[2] for name in files]
    return {
        "name": " + ".join(names[:3]) + (f" + {len(names) - 3} more" if names[3:] else ""),
        "sentence": sentence(report),
        "facts": _facts(report),
        "tiles": _tiles(report),
        "pressing": [_rule(rule) for rule in rules if rule["verdict"] in ("fail", "warn")],
        "settled": [rule for rule in rules if rule["verdict"] in ("pass", "skipped")],
        "histograms": _histograms(report),
        "packing": report["lengths"].get("packing") or [],
        "percentiles": _percentiles(report),
        "clusters": [_cluster(cluster) for cluster in report["duplicates"]["examples"]],
        "conflicts": [_conflict(example) for example in report["conflicts"]["examples"]],
        "rankings": _rankings(report),
        "topics": _topics(report),
        "config": _flat(report.get("config") or {}),
        "share": share,
        "plural": plural,
    }


def sentence(report: Mapping[str, Any]) -> str:
    """The verdict in words."""
    found: dict[str, list[Any]] = {verdict: [] for verdict in VERDICTS}
    for rule in report["rules"]:
        found[rule["verdict"]].append(rule)
    total = sum(len(found[verdict]) for verdict in VERDICTS[:3])
    worst = next((verdict for verdict in ("fail", "warn") if found[verdict]), None)
    if worst is None:
        return f"All {total} rules pass." if total else "No rule was checked."
    listed = sorted(found[worst], key=lambda rule: -rule["count"])
    told = ", ".join(f"{rule['name']} ({rule['count']:,})" for rule in listed[:4])
    more = f" and {len(listed) - 4} more" if listed[4:] else ""
    count = len(listed)
    if worst == "fail":
        text = f"{count} of {total} rules {'fails' if count == 1 else 'fail'}: {told}{more}."
        warned = len(found["warn"])
        return text + (
            f" {warned} more {'wants' if warned == 1 else 'want'} a look." * bool(warned)
        )
    wants = "wants" if count == 1 else "want"
    return f"No rule fails; {count} of {total} {wants} a look: {told}{more}."


def share(part: float) -> str:
    """A share in per cent, never rounded to none or to all."""
    percent = 100 * part
    if 0 < percent < 0.01:
        return "< 0.01 %"
    if 99.99 < percent < 100:
        return "> 99.99 %"
    return f"{percent:.3g} %" if percent < 99.5 or percent == 100 else f"{percent:.2f} %"


def _facts(report: Mapping[str, Any]) -> list[str]:
    counts = report["counts"]
    made = str(report["created"])[:16].replace("T", " ")
    facts = [
        plural(counts["records"], "record"),
        charts.in_bytes(counts["bytes"]) if counts["bytes"] >= 2**20 else f"{counts['bytes']:,} B",
        f"read in {duration(report['seconds'])}",
        f"{made} UTC",
    ]
    facts.append(
        f"tokenizer {_base(report['tokenizer'])}" if report["tokenizer"] else "no tokenizer"
    )
    if report["profile"]:
        facts.append(f"profile {report['profile']}")
    return facts


def _base(name: str) -> str:
    """The last part of a path; names of a hub stay whole."""
    return name.rstrip("/").rpartition("/")[2] if name.startswith("/") else name


def _tiles(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(label, number, remark) of what people look for first."""
    counts, lengths = report["counts"], report["lengths"]
    records = counts["records"]
    tiles = [("records", f"{records:,}", plural(counts["turns"], "turn"))]
    if counts["tokens"] is not None:
        tiles.append(("tokens", charts.si(counts["tokens"]), ""))
        if counts["target_tokens"] is not None and counts["tokens"]:
            learned = counts["target_tokens"] / counts["tokens"]
            remark = f"{charts.si(counts['target_tokens'])} tokens"
            tiles[-1:] = [tiles[-1], ("learned", share(learned), remark)]
    else:
        tiles.append(("characters", charts.si(counts["chars"]), "no tokenizer given"))
    median = lengths["percentiles"].get("50")
    if median is not None:
        tiles.append(("median length", f"{median:,.0f}", lengths["unit"]))
    if records:
        over = lengths["over"]
        tiles.append(("too long", f"{over:,}", f"over {lengths['max_length']:,} tokens"))
        twice = report["duplicates"]["near"]["records"]
        tiles.append(("near-duplicates", f"{twice:,}", share(twice / records)))
    against = report["leakage"]["against"]
    if against:
        leaked = sum(entry["leaked"] for entry in against)
        tiles.append(("leaked", f"{leaked:,}", "evaluation records"))
    return tiles


def _rule(rule: Mapping[str, Any]) -> dict[str, Any]:
    shown = len(rule["examples"])
    told = plural(shown, "example") if shown >= rule["count"] else f"{shown} of {rule['count']:,}"
    return {**rule, "width": min(100.0, 100 * rule["share"]), "shown": told}


def _histograms(report: Mapping[str, Any]) -> list[plots.Histogram]:
    lengths, novelty = report["lengths"], report.get("novelty")
    limit = lengths["max_length"]
    mark = (limit, f"max_length {limit:,}") if limit and lengths["unit"] == "tokens" else None
    unit = lengths["unit"]
    answers = report["answers"]["histogram"]
    turns = report["turns"]["histogram"]
    drawn = [
        plots.plot("lengths", f"Length of a record, {unit}", lengths["histogram"], unit, mark=mark),
        plots.plot("answers", "Length of an answer, characters", answers, "characters"),
        plots.plot("turns", "Turns of a record", turns, "turns"),
        plots.plot(
            "novelty",
            "Novelty: how unlike its nearest neighbour a record is",
            novelty and novelty["histogram"],
            "novelty",
            text=charts.plain,
        ),
    ]
    return [each for each in drawn if each]


def _percentiles(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    names = {"50": "Half", "90": "90\u00a0%", "99": "99\u00a0%", "max": "all"}
    found = report["lengths"]["percentiles"]
    return [(names.get(key, f"{key} %"), f"{value:,.0f}") for key, value in found.items()]


def _cluster(cluster: Mapping[str, Any]) -> dict[str, Any]:
    records = cluster["records"][:SIDE_BY_SIDE]
    if cluster["kind"] == "exact":
        places = [record["where"] for record in records]
        text = [(False, record["text"]) for record in records[:1]]
        shown = [{"places": places, "pieces": text}]
        return {"kind": "exact", "size": cluster["size"], "records": shown, "told": len(places)}
    first = records[0]["text"] if records else ""
    shown = [
        {"places": [record["where"]], "pieces": plots.compared(first, record["text"])}
        for record in records
    ]
    return {"kind": "near", "size": cluster["size"], "records": shown, "told": len(shown)}


def _conflict(example: Mapping[str, Any]) -> dict[str, Any]:
    answers = example["answers"]
    first = answers[0]["text"] if answers else ""
    return {
        "prompt": example["prompt"],
        "answers": [
            {"where": answer["where"], "pieces": plots.compared(first, answer["text"])}
            for answer in answers[:SIDE_BY_SIDE]
        ],
        "more": max(0, len(answers) - SIDE_BY_SIDE),
    }


def _rankings(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Counts of sources, labels, languages, roles and formats, where there is more than a row."""
    counts, labels = report["counts"], report.get("labels")
    tables: list[tuple[str, Mapping[str, int], str]] = [
        ("Sources", report["sources"]["counts"], _effective(report["sources"])),
        ("Labels", labels["counts"] if labels else {}, _effective(labels) if labels else ""),
        (
            "Languages",
            report["languages"]["counts"],
            f"guessed from {plural(report['languages']['sampled'], 'record')}",
        ),
        ("Turns by role", counts["roles"], ""),
        ("Formats", counts["formats"], ""),
    ]
    rankings = []
    for title, found, remark in tables:
        if not found:
            continue
        bars, others, records = plots.ranking(found)
        rankings.append(
            {"title": title, "bars": bars, "remark": remark, "others": others, "records": records}
        )
    return rankings


def _effective(counted: Mapping[str, Any]) -> str:
    return f"as varied as {counted['effective']:.3g} of equal size, of {len(counted['counts']):,}"


def _topics(report: Mapping[str, Any]) -> dict[str, Any] | None:
    found = report.get("topics")
    if not found or not found["items"]:
        return None
    most = max(item["count"] for item in found["items"])
    items = [
        {**item, "share": item["count"] / found["sampled"], "width": 100 * item["count"] / most}
        for item in found["items"]
    ]
    return {**found, "items": items}


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", re.sub(r"\s+", " ", str(value))))
    return rows
