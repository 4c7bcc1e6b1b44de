"""`python -m launcher.curate.report RUN_DIR [-o DIR] [--profile openai] [--json]`: read all data,
write report.json and report.html, and say the verdict."""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
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
from launcher.core.errors import ExitCode, LauncherError
from launcher.core.rundir import RunDir, write_atomic
from launcher.curate import inputs, languages, numbers, page
from launcher.curate.examples import Examples
from launcher.curate.limits import RULES, gated, limits, require, require_profile
from launcher.curate.output import require_writable, writing
from launcher.curate.rules import Facts, evaluate
from launcher.curate.scan import Scan, scan
from launcher.curate.texts import plural
from launcher.data.prepare.split import say
from launcher.data.tokenizer import hide_torch, load_tokenizer

VERSION = 1
#: Rises with every change of what the rules find, so that no gate trusts an older report.
CODE_VERSION = 3
JSON_NAME, PAGE_NAME = "report.json", "report.html"
_ALLOW = "mend the data as said above, or allow more with data.report.fail and data.report.warn"


def build(config: Config, profile: str | None = None) -> dict[str, Any]:
    """The report on the data of a config, as report.json has it. Errors as `scan` raises them."""
    begun = time.monotonic()
    require_profile(profile)
    require(config)
    allowed = limits(config.data.report, profile)
    inputs.require_train(inputs.inputs(config))
    tokenizer = tokenizer_of(config)
    found = scan(config, tokenizer, profile)
    sample = _sample(found)
    items = found.fetch(sample)
    facts = Facts.of(found, languages.tell(items))
    results = evaluate(facts)
    texts = [items[row].text for row in sample]
    sections = numbers.sections(facts, results, texts)
    judged = Examples(facts, config.data.report.examples).rules(results, allowed)
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
        write_atomic(folder / PAGE_NAME, page.render(report).encode("utf-8", "replace"))


def default_folder(config: Config, report: dict[str, Any]) -> Path:
    """Where a report lies if nobody says where."""
    root = fingerprint.cache_root(config) if config.data.cache else runtime.cache_dir()
    return root / "reports" / digest(report)


def tokenizer_of(config: Config) -> Any:
    """The tokenizer that the config names; None if it names neither that nor a model."""
    model = config.model
    if model.kind == "hf" and not (model.tokenizer or model.name):
        return None
    return load_tokenizer(model)


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
    skipped = [
        f"{rule['name']} ({rule['found']})"
        for rule in report["rules"]
        if rule["verdict"] == "skipped"
    ]
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


def main(arguments: Sequence[str]) -> int:
    """Write the report on the data of a run folder's config. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="launcher data report", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--profile")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--fail-on", default="never")
    options = parser.parse_args(arguments)
    hide_torch()
    try:
        config = compose.load(RunDir(options.run).require().config)
        if options.out:
            require_writable(options.out)
        report = build(config, options.profile)
        folder = options.out or default_folder(config, report)
        write(report, folder)
    except LauncherError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return ExitCode.interrupted
    print(json.dumps(report, indent=2) if options.json else summary(report))
    if not options.json:
        print(folder / PAGE_NAME)
    stopping = over(report, options.fail_on, config.data.gate)
    if stopping:
        say(f"error: --fail-on {options.fail_on}: {', '.join(stopping)}\n  HINT: {_ALLOW}")
    return ExitCode.data if stopping else ExitCode.ok


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
