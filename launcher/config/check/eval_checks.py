"""What is wrong with the evaluation of a config."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from launcher.config.schema import Config, EvalConfig, JudgeConfig, variants
from launcher.core.errors import Problem, did_you_mean


def check(config: Config) -> Iterator[Problem]:
    """All problems of the section `eval`."""
    options, metrics = config.eval, variants.metrics_of(config)
    if options.name not in ("none", "default"):
        hint = did_you_mean(options.name, ["none", "default"])
        yield Problem("eval.name", f"unknown name {options.name!r}", hint)
    for name in config.objective.own_records:
        yield from _own_records(name, config)
    for name in config.objective.own_metrics:
        yield from _own_metric(name, config)
    for name in metrics:
        yield from _metric(name, config)
    shown = [variants.metric_name(name) for name in dict.fromkeys(metrics)]
    for name in sorted({name for name in shown if shown.count(name) > 1}):
        kept = {variants.metric_name(other): other for other in reversed(metrics)}.values()
        hint = f"eval.metrics=[{','.join(reversed(kept))}], or give a file another name"
        yield Problem("eval.metrics", f"{name} would be the name of two in results", hint)
    if metrics and config.data.validation is None and config.data.validation_share == 0:
        hint = "give data.validation or data.validation_share, or eval=none"
        yield Problem("eval.metrics", "evaluation without held-out data", hint)
    for key in ("every_steps", "times"):
        value = getattr(options, key)
        if value is not None and not metrics and options.name != "none":
            found = f"{value} without eval.metrics"
            yield Problem(f"eval.{key}", found, "use eval=default, or leave it out")
    if options.every_steps is not None and options.times is not None:
        found = f"{options.times} with eval.every_steps={options.every_steps}"
        yield Problem("eval.times", found, "eval.times=null, or eval.every_steps=null")
    if (options.general or options.new) and not metrics and options.name != "none":
        key = "eval.general" if options.general else "eval.new"
        hint = "use eval=default, or leave it out"
        yield Problem(key, "further held-out data without eval.metrics", hint)
    for name in options.new:
        if not re.fullmatch(r"[\w-]+", name):
            plain = re.sub(r"[^\w-]+", "-", name).strip("-") or "later"
            hint = f"a name has letters, digits, _ and -: call it {plain!r}"
            yield Problem("eval.new", f"{name!r} is no name of a set", hint)
    yield from _options(options)


def _metric(name: str, config: Config) -> Iterator[Problem]:
    rows = variants.metric_rows(config)
    row = rows.get(name)
    if row is None and name in config.objective.own_metrics:
        return  # its row is no row, which `_own_metric` tells
    if row is None:
        hint = did_you_mean(name, rows)
        yield Problem("eval.metrics", f"unknown metric {name!r}", hint)
    elif row.records not in config.objective.records or not _is_brought(name, config):
        others = [
            n
            for n, cls in variants.OPTIONS["objective"].items()
            if row.records in getattr(cls, "records", ())
            and (_is_ours(name) or name in getattr(cls, "own_metrics", {}))
        ]
        fitting = [n for n, own in rows.items() if own.fits(config) and _is_brought(n, config)]
        goes = " or ".join(f"objective={other}" for other in others)
        hint = f"it goes with {goes}; here eval=default takes the usual ones"
        hint += f" of {', '.join(fitting)}"
        found = f"{name} with objective={config.objective.name}"
        yield Problem("eval.metrics", found, hint)
    elif row.records == "generation" and config.data.format == "text":
        hint = f"plain text has no prompt to answer: leave {name} out, e.g. eval=default"
        yield Problem("eval.metrics", f"{name} with plain text", hint)
    elif row.needs_base and not config.eval.base:
        hint = f"leave {name} out of eval.metrics, or set eval.base=true"
        yield Problem("eval.metrics", f"{name} {row.needs_base} the base's answers", hint)
    elif found := row.problem(config):
        hint = f"for example {row.example}" if row.example else f"leave {name} out"
        yield Problem("eval.metrics", f"{name} {found}", hint)


def _is_brought(name: str, config: Config) -> bool:
    """Whether a metric is the launcher's, a grader or the objective's, and not that of another
    objective."""
    return _is_ours(name) or name in config.objective.own_metrics


def _is_ours(name: str) -> bool:
    return name in variants.METRICS or name.startswith(variants.GRADER)


def _own_metric(name: str, config: Config) -> Iterator[Problem]:
    """What is wrong with a metric that the objective brings, before anything is measured."""
    objective, row = config.objective.name, config.objective.own_metrics[name]
    known = variants.records_of(config.objective)
    where = f"the metric {name!r} of {objective}"
    if name in variants.METRICS:
        hint = "give it another name in own_metrics"
        yield Problem("objective.name", f"{where} is named as one of the launcher's", hint)
    elif not isinstance(row, variants.MetricRow) or row.records not in known:
        hint = "write variants.MetricRow(f'{__name__}:CLASS', RECORDS), with one of "
        hint += ", ".join(known)
        yield Problem("objective.name", f"{where} has no row, or is made of nothing known", hint)
    elif row.records not in config.objective.records:
        hint = f"let `records` of its options name {row.records!r} too, and `score` give them"
        yield Problem(
            "objective.name", f"{where} is made of {row.records}, of which it has none", hint
        )
    elif objective.endswith(".py") and getattr(_class(row.path), "name", None) != name:
        hint = (
            f"write a subclass of Metric with `name = {name!r}`, and its row with __name__ and it"
        )
        yield Problem("objective.name", f"{where} has no class at {row.path}", hint)
    elif objective.endswith(".py") and _more(row.path) is row.lower_is_better:
        hint = f"lower_is_better={not row.lower_is_better} in its row says what its class does"
        found = f"{where} has a row with lower_is_better={row.lower_is_better}, unlike its class"
        yield Problem("objective.name", found, hint)


def _more(path: str) -> bool | None:
    """Whether more is better of the metric at `path`; None if its class does not say."""
    found: bool | None = getattr(_class(path), "higher_is_better", None)
    return found


def _own_records(name: str, config: Config) -> Iterator[Problem]:
    """What is wrong with a pass over held-out records that the objective brings."""
    objective, path = config.objective.name, config.objective.own_records[name]
    where = f"the records {name!r} of {objective}"
    if name in variants.RECORDS:
        hint = "give them another name in own_records"
        yield Problem("objective.name", f"{where} are named as some of the launcher's", hint)
    elif objective.endswith(".py") and _class(path) is None:
        hint = f"write f'{{__name__}}:CLASS' for {name!r}, with the class of its records"
        yield Problem("objective.name", f"{where} have no class at {path}", hint)


def _class(path: str) -> Any:
    """A class of a file that is loaded; None if there is none."""
    module, _, attribute = path.partition(":")
    return getattr(sys.modules.get(module), attribute, None)


def of_judge(options: EvalConfig) -> Iterator[Problem]:
    """What is wrong with the metric judge."""
    judge = options.judge
    if judge.url is None or not judge.url.startswith(("http://", "https://")):
        hint = "for example eval.judge.url=http://localhost:8000/v1"
        found = "the metric judge needs it" if judge.url is None else f"{judge.url!r} is no address"
        yield Problem("eval.judge.url", found, hint)
    if judge.model is None:
        hint = "the name that the service knows, e.g. eval.judge.model=gpt-4.1"
        yield Problem("eval.judge.model", "the metric judge needs it", hint)


def _options(options: EvalConfig) -> Iterator[Problem]:
    for key, example in (("answer_pattern", "#### (-?[0-9.,]+)"), ("convention", r"[.!?]\Z")):
        pattern = getattr(options, key)
        try:
            re.compile(pattern or "")
        except re.error as error:
            hint = f"it is a Python regular expression, e.g. 'eval.{key}={example}'"
            yield Problem(f"eval.{key}", f"{pattern!r}: {error}", hint)
    if "judge" in (options.metrics or ()):
        yield from of_judge(options)
    if "" in options.stop:
        hint = r"""name the text before which answers end, e.g. 'eval.stop=["\nQ:"]'"""
        yield Problem("eval.stop", "an empty string would end every answer at once", hint)
    if options.top_p < 1 and options.temperature == 0:
        hint = "without it the likeliest token is taken: set eval.temperature=0.7 too"
        yield Problem("eval.top_p", f"{options.top_p} without eval.temperature", hint)
    if options.draws is not None and options.draws > 1 and options.temperature == 0:
        hint = "without it all answers are the same: set eval.temperature=1 too, or eval.draws=1"
        yield Problem("eval.draws", f"{options.draws} without eval.temperature", hint)
    yield from _judges(options)
    limits = options.answer_words
    if limits is not None and (len(limits) != 2 or not 0 <= limits[0] <= limits[1]):
        hint = "the fewest and the most words, e.g. eval.answer_words=[5,80]"
        yield Problem("eval.answer_words", f"{limits} are no limits", hint)


def _judges(options: EvalConfig) -> Iterator[Problem]:
    """What is wrong with the endpoints of graders."""
    known = [field.name for field in fields(JudgeConfig)]
    for name, members in options.endpoints.items():
        where, example = f"eval.endpoints.{name}", "write {url: http://localhost:8000/v1}"
        if not isinstance(members, Mapping):
            yield Problem(where, f"{members!r} is no endpoint", example)
            continue
        for other in members.keys() - {*known}:
            yield Problem(f"{where}.{other}", "unknown key", did_you_mean(str(other), known))
        if not str(members.get("url")).startswith(("http://", "https://")):
            yield Problem(f"{where}.url", f"{members.get('url')!r} is no address", example)
