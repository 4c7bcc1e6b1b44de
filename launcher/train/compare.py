"""`python -m launcher.train.compare RUN RUN...`: runs against the first, by what they scored."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.config import compose
from launcher.data.cache import TokenCache
from launcher.errors import ConfigError, DataError, ExitCode
from launcher.evals import compare, slices, store
from launcher.evals.metric import Metric, make_metrics
from launcher.evals.records import Results
from launcher.report import summary
from launcher.rundir import find_run, read_json
from launcher.train.command import exit_code_of
from launcher.train.groups import groups

#: What may be asked of all others than the first -> verdicts that fail it.
REQUIRED = {"better": ("worse", "mixed", "no evidence"), "not-worse": ("worse", "mixed")}


class Scored:
    """The stored results of one side: of a run, or of its base as `RUN:base`."""

    def __init__(self, name: str) -> None:
        """Raises `ConfigError` for no such run, `DataError` for one without results."""
        self.name = name
        run_name, _, part = name.partition(":")
        if part not in ("", "base"):
            raise ConfigError(f"{part!r} is no part of a run", where=name, hint="RUN or RUN:base")
        self.run = find_run(run_name)
        self.config = compose.load(self.run.config)
        found = store.read_results(self.run.eval / f"{part or 'tuned'}.json")
        folder = (read_json(self.run.data) or {}).get("validation")
        if found is None or folder is None:
            raise DataError(
                "the run has no scores on held-out records",
                where=str(self.run),
                hint="they are made at the end of a run that has eval.metrics and held-out data",
            )
        self.results, self.folder = found, str(folder)


def against(first: Scored, other: Scored, seed: int = 0) -> dict[str, Any]:
    """The comparison of `other` with `first`, with slices and the records that changed.

    Raises `DataError` if they were scored on other records, or their answers made otherwise.
    """
    if first.folder != other.folder:
        raise DataError(
            f"{first.name} and {other.name} were scored on other records",
            where="data.validation",
            hint="train both with the same held-out data, tokenizer and chat template",
        )
    for key in ("max_new_tokens", "answer_pattern"):
        values = [getattr(side.config.eval, key) for side in (first, other)]
        if values[0] != values[1]:
            found = f"{first.name} has {values[0]!r}, {other.name} {values[1]!r}"
            hint = "answers are compared that were made and judged alike"
            raise DataError(found, where=f"eval.{key}", hint=hint)
    metrics = shared_metrics(first, other)
    sides = first.results, other.results
    made = compare.compare(*sides, metrics, seed)
    parts = groups(TokenCache.open(Path(first.folder)), sides[0].ids())
    made["slices"] = slices.compare_slices(*sides, metrics, parts, seed)
    made["changed"] = changed(*sides, metrics)
    return {"base_name": first.name, "tuned_name": other.name, **made}


def shared_metrics(first: Scored, other: Scored) -> list[Metric[Any]]:
    """Metrics that both runs list."""
    theirs = set(other.config.eval.metrics)
    metrics = [m for m in make_metrics(first.config.eval) if m.name in theirs]
    if not metrics:
        hint = "see eval.metrics of both with `launcher config`"
        raise DataError("the runs have no metric in common", where="eval.metrics", hint=hint)
    return metrics


def changed(
    base: Results, tuned: Results, metrics: Sequence[Metric[Any]]
) -> dict[str, list[dict[str, str]]]:
    """Answers that got better or worse by the first metric that judges them, or are only others."""
    judge = next((m for m in metrics if m.needs == "generation"), None)
    if judge is None or not base.generations:
        return {}
    before, after = ({r.id: r for r in side.generations} for side in (base, tuned))
    ids = sorted(before.keys() & after.keys())
    values = [judge.scores(judge.statistics([side[i] for i in ids])) for side in (before, after)]
    found: dict[str, list[dict[str, str]]] = {"better": [], "worse": [], "changed": []}
    for i, old, new in zip(ids, *values, strict=True):
        one, other = before[i], after[i]
        if one.answer == other.answer:
            continue
        gain = (new - old) * (1 if judge.higher_is_better else -1)
        kind = "better" if gain > 0 else "worse" if gain < 0 else "changed"
        texts = {"reference": one.reference, "base": one.answer, "tuned": other.answer}
        found[kind].append({"where": one.where, "prompt": one.prompt, **texts})
    return found


def told(made: Mapping[str, Any]) -> str:
    """The comparison for a terminal."""
    lines = [f"{made['tuned_name']} against {made['base_name']}", summary.table(made)]
    for part in made["slices"]:
        for name, row in part["metrics"].items():
            if row["verdict"] != "no evidence":
                where = f"{part['by']} {part['value']}, {part['records']:,} records"
                change = summary.number(row["difference"], row["unit"], signed=True)
                lines.append(f"{row['verdict']} in {where}: {name} {change}")
    for kind, records in made["changed"].items():
        if records:
            lines.append(f"{len(records):,} answers {kind}, such as {records[0]['where']}")
    lines.append(f"verdict: {summary.outcome(made)}")
    return "\n".join(lines)


def main(argv: list[str]) -> int:
    """Exit code of `launcher.errors.ExitCode`; the comparison on stdout."""
    parser = argparse.ArgumentParser(prog="launcher compare", description=__doc__)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--require", choices=tuple(REQUIRED))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(argv)
    outcomes: list[str] = []

    def work() -> None:
        if len(options.runs) < 2:
            hint = "launcher compare FIRST OTHER; a run's base is RUN:base"
            raise ConfigError("two runs are needed", where="launcher compare", hint=hint)
        first, *others = [Scored(name) for name in options.runs]
        made = [against(first, other) for other in others]
        outcomes.extend(summary.outcome(one) for one in made)
        print(json.dumps(made, indent=2) if options.json else "\n\n".join(map(told, made)))

    code = exit_code_of(work)
    refused = REQUIRED.get(options.require, ())
    return code or (ExitCode.data if any(found in refused for found in outcomes) else ExitCode.ok)


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
