"""The report on the data of a config: read, judged, and written as report.json and report.html."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from launcher import fingerprint
from launcher.config.compose import compose
from launcher.config.schema import Config, data_report
from launcher.core import runtime
from launcher.core.files import write_atomic
from launcher.curate.output import writing
from launcher.curate.page import page
from launcher.curate.records.texts import plural
from launcher.curate.report import numbers
from launcher.curate.report.examples import Examples
from launcher.curate.rules import languages
from launcher.curate.rules.limits import RULES, gated, limits, require, require_profile
from launcher.curate.rules.rules import Evidence, evaluate
from launcher.curate.scan import inputs
from launcher.curate.scan.scan import Scan, scan
from launcher.report import renderer

VERSION = 1
#: Rises with every change of what the rules find, so that no gate trusts an older report.
CODE_VERSION = 4
JSON_NAME, PAGE_NAME = "report.json", "report.html"


def build(config: Config, profile: str | None = None) -> dict[str, Any]:
    """The report on the data of a config, as report.json has it. Errors as `scan` raises them."""
    begun = time.monotonic()
    require_profile(profile)
    require(config)
    allowed = limits(config.data.report, profile)
    inputs.require_train(inputs.inputs(config))
    tokenizer = inputs.tokenizer_of(config)
    found = scan(config, tokenizer, profile)
    sample = _sample(found)
    records = found.fetch(sample)
    evidence = Evidence.of(found, languages.tell(records))
    results = evaluate(evidence)
    texts = [records[row].text for row in sample]
    sections = numbers.sections(evidence, results, texts)
    judged = Examples(evidence, config.data.report.examples).rules(results, allowed)
    sections |= judged
    verdicts = [rule["verdict"] for rule in judged["rules"]]
    worst = next((verdict for verdict in ("fail", "warn") if verdict in verdicts), "pass")
    return {
        "version": VERSION,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "profile": profile,
        "tokenizer": found.tokenizer,
        "config": compose.to_dict(config)["data"],
        **sections,
        "verdict": worst,
        "seconds": round(time.monotonic() - begun, 2),
    }


def digest(report: dict[str, Any]) -> str:
    """A hash of what was found: two readings of the same data with the same settings agree."""
    kept = {key: value for key, value in report.items() if key not in ("created", "seconds")}
    text = json.dumps(kept, sort_keys=True)
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=16).hexdigest()


def write(report: dict[str, Any], folder: Path) -> None:
    """Write report.json and report.html. Raises `StorageError` if that is not possible."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / JSON_NAME, json.dumps(report, indent=1))
        renderer.write(folder / PAGE_NAME, page.render(report))


def default_folder(config: Config, report: dict[str, Any]) -> Path:
    """Where a report lies if nobody says where."""
    root = fingerprint.cache_root(config) if config.data.cache else runtime.cache_dir()
    return root / "reports" / digest(report)


def over(report: dict[str, Any], worst: str, gate: Sequence[str] = ()) -> list[str]:
    """Rules whose verdict is `worst` ("warn" or "fail") or worse. Where a gate names rules, only
    they and those of the profile count."""
    verdicts = {"warn": ("warn", "fail"), "fail": ("fail",)}.get(worst, ())
    heard = {*(gated(gate) or RULES), *data_report.PROFILES.get(report["profile"], ())}
    return [
        rule["name"]
        for rule in report["rules"]
        if rule["verdict"] in verdicts and rule["name"] in heard
    ]


def _sample(found: Scan) -> list[int]:
    """Rows of a sample that depends on the records alone, not on their order."""
    count = found.config.data.report.sample
    order = np.argsort(found.train.whole[:, 0], kind="stable")[:count]
    rows: list[int] = np.sort(order).tolist()
    return rows


def summary(report: dict[str, Any]) -> str:
    """The report in a terminal: a line of numbers, a line for each rule that does not pass."""
    counts, lengths = report["counts"], report["lengths"]
    size = lengths["percentiles"]
    parts = [plural(counts["records"], "record"), plural(counts["turns"], "turn")]
    if counts["tokens"] is not None:
        targets = counts["target_tokens"] / max(1, counts["tokens"])
        parts += [plural(counts["tokens"], "token"), f"{targets:.1%} targets"]
    parts.append(f"median {size['50']:,} {lengths['unit']}, longest {size['max']:,}")
    lines = [", ".join(parts)]
    if counts["tokens"] is None:
        lines.append("no tokenizer is given: lengths are in characters (model.name=... for tokens)")
    for verdict in ("fail", "warn"):
        for rule in report["rules"]:
            lines += _told(rule) if rule["verdict"] == verdict else []
    passed = sum(rule["verdict"] == "pass" for rule in report["rules"])
    reasons: dict[str, list[str]] = {}
    for rule in report["rules"]:
        if rule["verdict"] == "skipped":
            reasons.setdefault(rule["found"], []).append(rule["name"])
    skipped = [f"{', '.join(names)} ({reason})" for reason, names in reasons.items()]
    lines.append(
        f"{plural(passed, 'rule')} pass{'es' * (passed == 1)}"
        + f"; nothing to check: {', '.join(skipped)}" * bool(skipped)
    )
    lines.append(f"verdict: {report['verdict']}")
    return "\n".join(lines)


def _told(rule: dict[str, Any]) -> list[str]:
    lines = [f"{rule['verdict'].upper()}  {rule['name']}: {rule['found']} ({rule['share']:.2%})"]
    lines += [f"      {example['where']}: {example['why']}" for example in rule["examples"][:2]]
    if rule["name"] == "broken" and rule["examples"] and rule["examples"][0]["text"]:
        lines.append(f"      HINT: {rule['examples'][0]['text']}")
    return [*lines, f"      {rule['fix']}"]
