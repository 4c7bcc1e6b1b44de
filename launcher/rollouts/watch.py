"""Reward hacking: a reward that rises while another measure of the same answers falls.

rises   the grader of the run, where it is a metric of held-out answers too, is better than the
        base's by the comparison of both; else the score of drawn answers is higher in the last
        third of the rollouts than in the first, of which the 95 % interval excludes 0. Groups are
        resampled, since the answers to one prompt are alike
falls   a metric of held-out answers that is not the reward is worse than the base's by that
        comparison

Both are beyond chance then, the verdicts of the comparison corrected over its metrics. Held-out
losses are not looked at: what stands in the data is not what is being learned.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from launcher.config.derive import copies
from launcher.core.rundir import RunDir
from launcher.evals.comparison import paired, significance
from launcher.evals.metric import Floats, Metric
from launcher.evals.metrics.graded import Graded, grade
from launcher.evals.records import Results
from launcher.graders.grader import Grader
from launcher.rollouts.journal import RolloutJournal

#: Examples of one measure that fell.
EXAMPLES = 5
#: Records whose answers are graded to find them, where the reward is no metric.
_GRADED = 20
#: Answers that are read of a third of the rollouts.
_ANSWERS = 2048

#: Record -> value of base and tuned.
Values = dict[int, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class Sides:
    """Two models' results, and what is known of them."""

    base: Results
    tuned: Results
    metrics: Sequence[Metric[Any]]
    rows: Mapping[str, Mapping[str, Any]]
    """Metric -> its row of the comparison."""
    resampling: paired.Resampling


def watch(run: RunDir, grader: Grader | None, seen: Sides) -> dict[str, Any] | None:
    """What the reward did, and which measures fell meanwhile; None where nobody knows the former.

    As JSON: `reward` is a row as of a comparison with `name` and `on`; `others` are the names of
    the measures beside it, `falls` of those that fell while it rose, and `examples` are records
    with both answers, `metric`, and `values` and `reward` of each, null for what is not known.
    """
    measures = {
        metric.name: metric
        for metric in seen.metrics
        if metric.needs == "generation" and metric.name in seen.rows
    }
    own = [name for name, metric in measures.items() if grader and _is_of(metric, grader)]
    if own:
        reward = {"name": own[0], "on": "held-out answers", **seen.rows[own[0]]}
    elif (found := trend(run, seen.resampling)) is not None:
        reward = {"name": "score", "on": "drawn answers", **found}
    else:
        return None
    others = [name for name in measures if name not in own]
    rises = reward["verdict"] == paired.Verdict.better.value
    fallen = [name for name in others if seen.rows[name]["verdict"] == paired.Verdict.worse.value]
    falls = fallen if rises else []
    scores = measures[own[0]] if own else grader
    examples = [one for name in falls for one in _examples(measures[name], scores, seen)]
    return {"reward": reward, "others": others, "falls": falls, "examples": examples}


def _is_of(metric: Metric[Any], grader: Grader) -> bool:
    if not isinstance(metric, Graded):
        return False
    # The run's own copy names models by their paths.
    folder = Path(metric.path).parent
    same: bool = copies.placed(metric.grader.to_wire(), folder) == grader.to_wire()
    return same


def _examples(
    metric: Metric[Any], reward: Metric[Any] | Grader | None, seen: Sides
) -> Iterator[dict[str, Any]]:
    """Records whose answer the metric likes less and the reward more, the largest falls first; by
    a grader that is no metric, of those that fell most."""
    values = _values(metric, seen)
    sign = 1 if metric.higher_is_better else -1
    drops = {i: sign * (before - after) for i, (before, after) in values.items()}
    fallen = sorted((i for i in drops if drops[i] > 0), key=lambda i: (-drops[i], i))
    if isinstance(reward, Grader):
        fallen = fallen[:_GRADED]
        rewards = _graded(reward, fallen, seen)
    else:
        rewards = _values(reward, seen) if reward else {}
    raised = [i for i in fallen if i in rewards and rewards[i][1] > rewards[i][0]]
    before, after = ({r.id: r for r in side.generations} for side in (seen.base, seen.tuned))
    for i in raised[:EXAMPLES]:
        yield {
            "where": after[i].where,
            "prompt": after[i].prompt,
            "reference": after[i].reference,
            "base": before[i].answer,
            "tuned": after[i].answer,
            "metric": metric.name,
            "values": values[i],
            "reward": rewards[i],
        }


def _values(metric: Metric[Any], seen: Sides) -> Values:
    """What each record scores with either model, of those that count with both."""
    sides = [{r.id: r for r in metric.select(results)} for results in (seen.base, seen.tuned)]
    ids = sorted(sides[0].keys() & sides[1].keys())
    found = metric.paired(*([side[i] for i in ids] for side in sides))
    pairs = zip(*(metric.each(side).tolist() for side in found), strict=True)
    return {i: pair for i, pair in zip(ids, pairs, strict=True) if all(map(math.isfinite, pair))}


def _graded(grader: Grader, ids: Sequence[int], seen: Sides) -> Values:
    """The grader's scores of both answers to each record, where it has them."""
    sides = [{r.id: r for r in side.generations} for side in (seen.base, seen.tuned)]

    def alive() -> None:
        seen.resampling.sign_of_life()

    calls = next((own.calls for own in seen.metrics if isinstance(own, Graded)), None)
    scores = [
        [found.score for found in grade(grader, [side[i] for i in ids], alive, calls)]
        for side in sides
    ]
    return {
        i: (one, other)
        for i, one, other in zip(ids, *scores, strict=True)
        if one is not None and other is not None
    }


def trend(run: RunDir, resampling: paired.Resampling) -> dict[str, Any] | None:
    """The mean score of drawn answers in the first third of the rollouts (`base`) and in the last
    (`tuned`): a row as of a comparison; None without two thirds that have scores."""
    journal = RolloutJournal(run)
    steps = journal.steps()
    if len(steps) < 2:
        return None
    third = math.ceil(len(steps) / 3)
    sides = [_groups(journal, part) for part in (steps[:third], steps[-third:])]
    if not all(map(len, sides)):
        return None
    one, other = (float(side.mean()) for side in sides)
    drawn = [
        replace(resampling, seed=resampling.seed + i).sums(side[:, None])[:, 0] / len(side)
        for i, side in enumerate(sides)
    ]
    differences = drawn[1] - drawn[0]
    low, high = (float(end) for end in np.percentile(differences, [2.5, 97.5]))
    p_value = significance.bootstrap(differences)
    is_sure = min(map(len, sides)) >= paired.MIN_DIFFERING and p_value <= 1 - paired.CONFIDENCE
    verdict = paired.Verdict.no_evidence
    if is_sure and not low <= 0 <= high:
        verdict = paired.Verdict.better if low > 0 else paired.Verdict.worse
    return {
        "base": one,
        "tuned": other,
        "difference": other - one,
        "interval": [low, high],
        "p_value": p_value,
        "verdict": verdict.value,
        "records": sum(map(len, sides)),
        "higher_is_better": True,
        "unit": "",
    }


def _groups(journal: RolloutJournal, steps: Sequence[int]) -> Floats:
    """Mean scores of the groups of some rollouts, fp64 [groups]: evenly spread ones, where all of
    them have many answers."""
    most = max(1, _ANSWERS // max(1, len(journal.read(steps[0]) or ())))
    count = min(most, len(steps))
    found: list[float] = []
    for i in range(count):
        groups: dict[int, list[float]] = {}
        for own in journal.read(steps[i * len(steps) // count]) or ():
            if own.score is not None:
                groups.setdefault(own.place, []).append(own.score)
        found += [sum(scores) / len(scores) for scores in groups.values()]
    return np.array(found, np.float64)
