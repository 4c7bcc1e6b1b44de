"""How much each varied key matters for the metric: Optuna's evaluator, or how they go together."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

from launcher.core.errors import ConfigError
from launcher.sweeps.folder import Request
from launcher.sweeps.space import Dimension
from launcher.sweeps.table import TrialRow

#: Over fewer finished trials a ranking is chance: two keys tried six times always have a first.
LEAST = 12
#: PED-ANOVA looks at what the best tenth has in common: with fewer trials that is one of them.
LEAST_FOR_ANOVA = 20


def importances(request: Request, rows: Sequence[TrialRow]) -> tuple[str, list[tuple[str, float]]]:
    """Name of the method, and (key, importance 0..1) of every key that varied, largest first.

    ("", []) if too few trials have finished.
    """
    done = [row for row in rows if row.is_done]
    varied = [d for d in request.swept if len({value_of(row, d) for row in done}) > 1]
    if len(done) < LEAST or not varied:
        return "", []
    name, found = "rank correlation or correlation ratio", _by_rank(done, varied)
    if len(done) >= LEAST_FOR_ANOVA:
        with contextlib.suppress(ConfigError):  # Optuna is not installed
            name, found = "PED-ANOVA (Optuna)", _by_optuna(request, done, varied)
    return name, sorted(found, key=lambda pair: -pair[1])


def value_of(row: TrialRow, dimension: Dimension) -> str:
    """What a trial has in the place of a varied key, as a word."""
    for word in row.trial.words:
        key, _, text = word.partition("=")
        if key == dimension.key:
            return text
    return ""


def _by_optuna(
    request: Request, done: Sequence[TrialRow], varied: Sequence[Dimension]
) -> list[tuple[str, float]]:
    from launcher.sweeps.proposals import distribution, library

    optuna = library()
    distributions = {d.key: distribution(d) for d in varied}
    study = optuna.create_study(direction="maximize" if request.maximize else "minimize")
    for row in done:
        parameters = {d.key: _parameter(row, d) for d in varied}
        study.add_trial(
            optuna.trial.create_trial(
                params=parameters, distributions=distributions, value=row.value
            )
        )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return [(key, float(value)) for key, value in found.items() if math.isfinite(value)]


def _parameter(row: TrialRow, dimension: Dimension) -> Any:
    text = value_of(row, dimension)
    if dimension.values:
        return text
    value = int(text) if dimension.whole else float(text)
    # Written with six digits, an end of the interval may lie beyond it.
    return min(max(value, dimension.low), dimension.high)


def _by_rank(done: Sequence[TrialRow], varied: Sequence[Dimension]) -> list[tuple[str, float]]:
    targets = _ranks([row.value or 0.0 for row in done])
    found = []
    for dimension in varied:
        texts = [value_of(row, dimension) for row in done]
        ordered = 0.0
        with contextlib.suppress(ValueError):  # names have no order
            ordered = abs(_correlation(_ranks([float(text) for text in texts]), targets))
        # The best is often in the middle, which no order shows.
        found.append((dimension.key, max(ordered, _ratio(texts, targets))))
    return found


def _ratio(texts: Sequence[str], targets: Sequence[float]) -> float:
    """Correlation ratio: how much of the targets' spread is one between the values, less what
    chance gives so many values (Kelley's epsilon, 1935); 0 to 1."""
    members: dict[str, list[float]] = {}
    for text, target in zip(texts, targets, strict=True):
        members.setdefault(text, []).append(target)
    free = len(texts) - len(members)
    mean = sum(targets) / len(targets)
    whole = sum((target - mean) ** 2 for target in targets)
    if not free or not whole:
        return 0.0
    inside = sum((t - sum(ts) / len(ts)) ** 2 for ts in members.values() for t in ts)
    return math.sqrt(max(0.0, 1 - inside / free * (len(texts) - 1) / whole))


def _ranks(values: Sequence[float]) -> list[float]:
    """Ranks from 0; equal values share the mean of theirs."""
    ordered = sorted(values)
    first = {value: ordered.index(value) for value in set(values)}
    return [first[value] + (ordered.count(value) - 1) / 2 for value in values]


def _correlation(xs: Sequence[float], ys: Sequence[float]) -> float:
    x_mean, y_mean = sum(xs) / len(xs), sum(ys) / len(ys)
    xs, ys = [x - x_mean for x in xs], [y - y_mean for y in ys]
    size = math.sqrt(sum(x * x for x in xs) * sum(y * y for y in ys))
    return sum(x * y for x, y in zip(xs, ys, strict=True)) / size if size else 0.0
