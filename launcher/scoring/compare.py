"""`python -m launcher.scoring.compare A B...`: models against the first, on the same records."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launcher import report
from launcher.config.check import eval_checks
from launcher.config.compose import compose
from launcher.config.schema import Config, variants
from launcher.core.errors import ConfigError, DataError, ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import RunDir, find_run
from launcher.core.runtime import user_path
from launcher.data.cache import TokenCache
from launcher.evals import judge, store
from launcher.evals.comparison.paired import Resampling
from launcher.evals.comparison.record_sets import compare_all
from launcher.evals.metric import Metric, make_metrics
from launcher.evals.records import Results, passes
from launcher.inference.command import exit_code_of, note
from launcher.objectives.base import of_run
from launcher.report import summary
from launcher.scoring.held_out import contamination, groups, held_out

#: What may be asked of all others than the first -> verdicts that fail it.
REQUIRED = {"better": ("worse", "mixed", "no evidence"), "not-worse": ("worse", "mixed")}


@dataclass(frozen=True, slots=True)
class Side:
    """One model's results on the held-out records of `run`."""

    name: str
    run: RunDir
    config: Config
    results: Results
    folders: dict[str, str]
    """Caches of the records by split."""


def sides(names: Sequence[str]) -> list[Side]:
    """The results that each name stands for; those that no run has stored are made now.

    RUN: what the run scored at its end; RUN:base: its base; RUN:STEP: a checkpoint; FOLDER: a
    Hugging Face folder, scored as the first run among the names scores. A RUN with whose export
    another one of them began, to learn otherwise or from other data, stands for the base of that.
    Raises `ConfigError` for no such thing, `DataError` for a run without held-out records.
    """
    runs = {name: find_run(name.partition(":")[0]) for name in names if not _is_model(name)}
    if not runs:
        hint = "its held-out data and metrics are taken; train one, or see `launcher status`"
        raise ConfigError("a run must be among them", where="launcher compare", hint=hint)
    bases = _bases(runs)
    for name, base in bases.items():
        note(f"{base.removesuffix(':base')} began with the export of {name}: {base} stands for it")
        runs[base] = runs[base.removesuffix(":base")]
    names = [bases.get(name, name) for name in names]
    first = next(runs[name] for name in names if name in runs)
    return [_side(name, runs.get(name), first) for name in names]


def _bases(runs: Mapping[str, RunDir]) -> dict[str, str]:
    """Of the names of whole runs those with whose export another one began, which cannot be
    compared as they are, and that one's base."""
    found = {}
    for name, further in runs.items():
        config = compose.load(further.config)
        began = [config.model.name, getattr(config.peft, "adapter", None)]
        # As it was typed where the run was started, beside its root.
        places = [Path(), further.path.resolve().parents[1]]
        folders = [(at / user_path(path)).resolve() for path in began if path for at in places]
        for start, run in runs.items():
            if ":" in start + name or run.export.resolve() not in folders:
                continue
            other = compose.load(run.config)
            held_out = [read_json(one.data, {}).get("validation") for one in (run, further)]
            if type(config.objective) is not type(other.objective) or held_out[0] != held_out[1]:
                found[start] = f"{name}:base"
    return found


def _is_model(name: str) -> bool:
    files = ("config.json", "adapter_config.json")
    return any(Path(name, file).is_file() for file in files)


def _side(name: str, run: RunDir | None, first: RunDir) -> Side:
    of = run or first
    held_out(of)
    part = name.partition(":")[2] if run else ""
    if part not in ("", "base") and not part.isdecimal():
        hint = "RUN, RUN:base or RUN:STEP"
        raise ConfigError(f"{part!r} is no part of a run", where=name, hint=hint)
    results, config = None, compose.load(of.config)
    if run and not part.isdecimal():
        path = run.eval / f"{part or 'tuned'}.json"
        results = store.read_results(path, passes(config.objective))
    if results is None:
        results = _scored(name, of, part, is_run=run is not None)
    folders = {split: f for split, f in read_json(of.data).items() if isinstance(f, str)}
    return Side(name, of, config, results, folders)


def _scored(name: str, run: RunDir, part: str, *, is_run: bool) -> Results:
    from launcher.inference.loading import open_folder, open_speaker  # stored results need no model
    from launcher.scoring.score import score

    note(f"scoring {name} on the held-out records of {run.name}")
    if is_run:
        step = int(part) if part.isdecimal() else None
        speaker = open_speaker(run, checkpoint=step, base=part == "base")
    else:
        speaker = open_folder(Path(name), run)
    return score(run, speaker, is_base=part == "base")[1]


def against(first: Side, other: Side) -> dict[str, Any]:
    """The comparison of `other` with `first`, with slices and the records that changed.

    Records are drawn by the seed of the first one's run.

    Raises `DataError` if they were scored on other records, or their answers made otherwise.
    """
    if first.folders["validation"] != other.folders["validation"]:
        raise DataError(
            f"{first.name} and {other.name} were scored on other records",
            where="data.validation",
            hint="train both with the same held-out data, tokenizer and chat template",
        )
    for key in ("max_new_tokens", "stop", "temperature", "top_p", "answer_pattern"):
        values = [getattr(side.config.eval, key) for side in (first, other)]
        if values[0] != values[1]:
            found = f"{first.name} has {values[0]!r}, {other.name} {values[1]!r}"
            hint = "answers are compared that were made and judged alike"
            raise DataError(found, where=f"eval.{key}", hint=hint)
    objectives = [of_run(side.run, side.config) for side in (first, other)]
    losses = [objective.options.held_out_loss for objective in objectives]
    if type(objectives[0]) is not type(objectives[1]) and (not losses[0] or losses[0] != losses[1]):
        names = [side.config.objective.name for side in (first, other)]
        raise DataError(
            f"{first.name} was trained with objective={names[0]}, {other.name} with {names[1]}",
            where="objective.name",
            hint="compare models of one objective, or of those whose held-out loss is the same",
        )
    objectives[0].require_same(objectives[1])
    apart = objectives[0].apart(objectives[1])
    metrics = [one for one in shared_metrics(first, other) if one.name not in apart]
    pair = first.results, _alike(other, first)
    if any(isinstance(metric, judge.WinRate) for metric in metrics):
        note(f"asking the judge {first.config.eval.judge.model} at {first.config.eval.judge.url}")
    judge.settle(metrics, *pair)
    cache = TokenCache.open(Path(first.folders["validation"]))
    parts = groups(first.run, cache, pair[0].ids())
    made = compare_all(*pair, metrics, parts, Resampling(first.config.seed))
    made["notes"] += contamination(other.run)
    lines = objectives[0].lines(*pair, metrics, cache.where, lambda record: "")
    made["answers"] = store.filled(lines)
    if pair[0].passes.keys() == pair[1].passes.keys():  # else one was scored for less
        about = objectives[0].about(pair[1])
        made |= {**about, "sections": objectives[0].sections(pair[1], about)}
    return {"base_name": first.name, "tuned_name": other.name, **made}


def shared_metrics(first: Side, other: Side) -> list[Metric[Any]]:
    """Metrics that both runs list, without those that only a base may come first in."""
    theirs = set(variants.metrics_of(other.config))
    is_base = first.name.endswith(":base")
    metrics = [
        metric
        for metric in make_metrics(first.config.eval, first.config.objective.own_metrics)
        if metric.name in theirs and (is_base or not metric.learns_from_base)
    ]
    if not metrics:
        hint = f"see eval.metrics in {first.run.config} and {other.run.config}"
        raise DataError("the runs have no metric in common", where="eval.metrics", hint=hint)
    return metrics


def _alike(other: Side, first: Side) -> Results:
    """The results of `other` without the further sets that are other records than those of
    `first`."""
    same = {split for split, folder in other.folders.items() if first.folders.get(split) == folder}
    further = {name: part for name, part in other.results.further.items() if name in same}
    return replace(other.results, further=further)


def told(made: Mapping[str, Any]) -> str:
    """The comparison for a terminal."""
    lines = [f"{made['tuned_name']} against {made['base_name']}", summary.table(made)]
    lines += made["notes"] + summary.beyond(made)
    for part in made["slices"]:
        for name, row in part["metrics"].items():
            if row["verdict"] != "no evidence":
                where = f"{part['by']} {part['value']}, {part['records']:,} records"
                change = summary.number(row["difference"], row["unit"], signed=True)
                lines.append(f"{row['verdict']} in {where}: {name} {change}")
    for kind in ("better", "worse", "changed"):
        found = [answer["where"] for answer in made["answers"] if answer["change"] == kind]
        if found:
            lines.append(f"{len(found):,} answers {kind}, such as {found[0]}")
    lines.append(f"verdict: {summary.outcome(made)}")
    return "\n".join(lines)


def _ask_judge(config: Config, url: str | None, model: str | None) -> None:
    """Compare by this judge too, whatever the run was configured for."""
    judge = config.eval.judge
    judge.url, judge.model = url or judge.url, model or judge.model
    config.eval.metrics = list(dict.fromkeys([*variants.metrics_of(config), "judge"]))
    if problems := list(eval_checks.of_judge(config.eval)):
        raise ConfigError(problems)


def main(argv: list[str]) -> int:
    """Exit code of `launcher.core.errors.ExitCode`; the comparison on stdout."""
    parser = argparse.ArgumentParser(prog="launcher compare", description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--require", choices=tuple(REQUIRED))
    parser.add_argument("--judge-url")
    parser.add_argument("--judge-model")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--html", type=Path)
    options = parser.parse_args(argv)
    outcomes: list[str] = []

    def work() -> None:
        if len(options.models) < 2:
            hint = "launcher compare FIRST OTHER; a run's base is RUN:base"
            raise ConfigError("two models are needed", where="launcher compare", hint=hint)
        first, *others = found = sides(options.models)
        if options.judge_url or options.judge_model:
            for side in found:
                _ask_judge(side.config, options.judge_url, options.judge_model)
        made = [against(first, other) for other in others]
        outcomes.extend(summary.outcome(one) for one in made)
        if options.html:
            report.build_comparison(made, options.html)
            note(f"page: {options.html}")
        print(json.dumps(made, indent=2) if options.json else "\n\n".join(map(told, made)))

    code = exit_code_of(work)
    refused = REQUIRED.get(options.require, ())
    return code or (ExitCode.data if any(found in refused for found in outcomes) else ExitCode.ok)


if __name__ == "__main__":
    import sys

    sys.exit(main(sys.argv[1:]))
