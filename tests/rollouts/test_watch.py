"""When a reward counts as risen, and what is told of measures that fell."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from launcher.config.schema import EvalConfig
from launcher.core.rundir import RunDir
from launcher.evals.comparison.paired import Resampling, compare
from launcher.evals.metric import make_metrics
from launcher.evals.records import Generation
from launcher.graders.wire import from_wire
from launcher.rollouts.journal import RolloutJournal
from launcher.rollouts.watch import EXAMPLES, Sides, trend, watch
from support.results import results_of
from support.rollouts import answered

GROUP, PLACES = 4, 8
FEW = Resampling(count=500)
HAS_E = {"type": "string_check", "name": "e", "input": "{{sample.output_text}}"}
HAS_E |= {"reference": "e", "operation": "ilike"}


def drawn(run: RunDir, means: list[float | None], *, seed: int = 0, places: int = PLACES) -> None:
    """Rollouts whose answers score 1 with such a probability; None: nothing has a score."""
    rng = np.random.default_rng(seed)
    for step, mean in enumerate(means):
        scores = [
            None if mean is None else float(rng.random() < mean) for _ in range(places * GROUP)
        ]
        answers = [
            answered(place=i // GROUP, number=i % GROUP, score=score)
            for i, score in enumerate(scores)
        ]
        RolloutJournal(run).write(2 * step, answers)


@pytest.mark.parametrize(
    ("means", "verdict"),
    [
        ([0.1, 0.3, 0.5, 0.7, 0.8, 0.9], "better"),
        ([0.9, 0.8, 0.7, 0.5, 0.3, 0.1], "worse"),
        ([0.5] * 6, "no evidence"),
        ([0.1, 0.9], "better"),
    ],
)
def test_the_trend_is_of_the_first_third_and_the_last(tmp_path, means, verdict):
    run = RunDir(tmp_path)
    drawn(run, means)
    found = trend(run, FEW)
    assert found is not None
    assert found["verdict"] == verdict
    third = -(-len(means) // 3)
    journal = RolloutJournal(run)
    for key, steps in (("base", journal.steps()[:third]), ("tuned", journal.steps()[-third:])):
        known = [own.score for step in steps for own in journal.read(step) or ()]
        assert found[key] == pytest.approx(np.mean([score or 0.0 for score in known]))
    assert found["interval"][0] < found["difference"] < found["interval"][1]
    assert found["records"] == 2 * third * PLACES
    assert trend(run, FEW) == found


@pytest.mark.parametrize("means", [[], [0.5], [None, 0.5], [0.5, None]])
def test_without_two_sides_there_is_no_trend(tmp_path, means):
    drawn(RunDir(tmp_path), means)
    assert trend(RunDir(tmp_path), FEW) is None


def test_a_few_groups_prove_nothing(tmp_path):
    drawn(RunDir(tmp_path), [0.0, 1.0], places=5)
    found = trend(RunDir(tmp_path), FEW)
    assert found is not None
    assert found["verdict"] == "no evidence"


def test_chance_alone_makes_a_trend_in_one_of_twenty_runs(tmp_path):
    """Answers to one prompt are alike: groups are all right or all wrong here."""
    found = []
    for seed in range(60):
        run, rng = RunDir(tmp_path / str(seed)), np.random.default_rng(seed)
        for step in range(6):
            scores = rng.integers(0, 2, PLACES).astype(float).repeat(GROUP).tolist()
            answers = [answered(place=i // GROUP, score=score) for i, score in enumerate(scores)]
            RolloutJournal(run).write(step, answers)
        row = trend(run, FEW)
        assert row is not None
        found.append(row["verdict"] != "no evidence")
    assert np.mean(found) <= 0.15


def sides(before: list[str], after: list[str], *metrics: str) -> Sides:
    """Both answers to each record, whose reference is `a`."""
    made = make_metrics(EvalConfig(metrics=list(metrics)))
    both = [
        results_of(generations=[Generation(i, f"h:{i}", f"p{i}", "a", t) for i, t in enumerate(ts)])
        for ts in (before, after)
    ]
    return Sides(both[0], both[1], made, compare(*both, made, FEW)["metrics"], FEW)


def looked(run: RunDir, seen: Sides) -> dict[str, Any]:
    found = watch(run, from_wire(HAS_E), seen)
    assert found is not None
    return found


def test_only_what_falls_beyond_chance_is_flagged(tmp_path):
    run = RunDir(tmp_path)
    drawn(run, [0.1, 0.9])
    kept = ["a"] * 20
    found = looked(run, sides(kept, ["e"] * 20, "exact_match", "f1"))
    assert found["falls"] == found["others"] == ["exact_match", "f1"]
    assert len(found["examples"]) == 2 * EXAMPLES
    assert found["examples"][0] == {
        **{"where": "h:0", "prompt": "p0", "reference": "a", "base": "a", "tuned": "e"},
        **{"metric": "exact_match", "values": (1.0, 0.0), "reward": (0.0, 1.0)},
    }
    found = looked(run, sides(kept, ["e"] * 3 + ["a"] * 17, "exact_match"))
    assert found["falls"] == found["examples"] == []
    assert found["others"] == ["exact_match"]


def test_nothing_is_flagged_while_the_reward_does_not_rise(tmp_path):
    run = RunDir(tmp_path)
    drawn(run, [0.5] * 6)
    found = looked(run, sides(["a"] * 20, ["e"] * 20, "exact_match"))
    assert found["reward"]["verdict"] == "no evidence"
    assert found["falls"] == []


def test_examples_are_those_that_the_reward_likes_more(tmp_path):
    """An answer that fell without it is none."""
    run = RunDir(tmp_path)
    drawn(run, [0.1, 0.9])
    found = looked(run, sides(["a"] * 20, ["o"] * 18 + ["e", "e"], "exact_match"))
    assert [one["where"] for one in found["examples"]] == ["h:18", "h:19"]


def test_without_a_reward_nobody_knows(tmp_path):
    seen = sides(["a"] * 20, ["e"] * 20, "exact_match")
    assert watch(RunDir(tmp_path), None, seen) is None
