"""`data.gate`: no run starts on data that breaks the rules it names."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher import fingerprint
from launcher.config.compose import compose
from launcher.config.schema import Config
from launcher.core.errors import DataError, Problem
from launcher.core.files import read_json, write_json
from launcher.curate.report.report import (
    CODE_VERSION,
    JSON_NAME,
    VERSION,
    build,
    default_folder,
    digest,
    write,
)
from launcher.curate.rules.limits import gated, require
from launcher.curate.scan.inputs import benchmark_data
from launcher.data.prepare.split import say

_UNCHECKED = "give it what it needs, or leave it out of data.gate"


def check(config: Config) -> dict[str, str] | None:
    """Make the report; its place, hash and verdict are for the run folder. None without a gate.

    Raises `DataError` with every gated rule that fails, its records and its fix, and `ConfigError`
    for a rule that does not exist.
    """
    require(config)
    rules = gated(config.data.gate)
    if not rules:
        return None
    report, folder = _report(config)
    judged = {rule["name"]: rule for rule in report["rules"]}
    problems = [_problem(judged[name]) for name in rules if judged[name]["verdict"] == "fail"]
    # Who names a rule wants it checked; a group takes what applies.
    skipped = [
        name for name in config.data.gate if judged.get(name, {}).get("verdict") == "skipped"
    ]
    problems += [
        Problem(f"data.gate: {name}", f"it was not checked: {judged[name]['found']}", _UNCHECKED)
        for name in skipped
    ]
    if problems:
        say(f"prepare: the report is {folder}")
        raise DataError(problems)
    say(f"prepare: the data passes its gate ({', '.join(rules)}): {folder}")
    path = str(folder / JSON_NAME)
    return {"path": path, "hash": digest(report), "verdict": report["verdict"]}


def _report(config: Config) -> tuple[dict[str, Any], Path]:
    """The report and where it lies: that of an earlier start if nothing has changed."""
    known = fingerprint.cache_root(config) / "reports" / f"{_key(config)}.json"
    folder = Path(read_json(known, {}).get("folder", known))
    report = read_json(folder / JSON_NAME) if folder != known else None
    if isinstance(report, dict) and digest(report) == folder.name:
        return report, folder
    report = build(config)
    folder = default_folder(config, report)
    write(report, folder)
    write_json(known, {"folder": str(folder)})
    return report, folder


def _key(config: Config) -> str:
    """What a report depends on: the content of all data, and the settings."""
    data = compose.to_dict(config)["data"]
    settings = {key: value for key, value in data.items() if key not in ("cache", "workers")}
    keys = [fingerprint.data_keys(config)]
    if config.data.report.benchmarks is not None:
        keys.append(fingerprint.data_keys(replace(config, data=benchmark_data(config.data))))
    text = json.dumps([VERSION, CODE_VERSION, keys, settings], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _problem(rule: dict[str, Any]) -> Problem:
    examples = rule["examples"][:3]
    shown = "; ".join(f"{example['where']}: {example['why']}" for example in examples)
    found = f"{rule['found']} ({rule['share']:.2%}; {rule['limit']})"
    found += f": {shown}" if shown else ""
    hint = f"{rule['fix']}; or allow it with data.report.fail={{{rule['name']}: SHARE}}"
    return Problem(f"data.gate: {rule['name']}", found, hint)
