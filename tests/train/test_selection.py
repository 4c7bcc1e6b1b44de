"""Which evaluation is the best and when patience ends, from scores alone."""

import json
import math

import pytest

from launcher.config.schema import EarlyStopConfig, Weights
from launcher.core.errors import DataError
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.evals.metric import make_metrics
from launcher.train import selection
from launcher.train.selection import Found, Selection
from support.configs import make_config

NAN = math.nan


def after(scores, *, higher=False, patience=2, min_change=0.0, metric="loss"):
    options = EarlyStopConfig(patience=patience, metric=metric, min_change=min_change)
    made = Selection(options, higher, keeps_best=True)
    for number, score in enumerate(scores, 1):
        made.add(10 * number, score)
        if made.is_exhausted:
            return made, 10 * number
    return made, None


@pytest.mark.parametrize(
    ("scores", "options", "best", "stopped"),
    [
        ([3, 2, 1], {}, 30, None),
        ([3, 2, 2.5, 2.1], {}, 20, 40),
        ([3, 2, 2.5, 1.9, 2, 2], {}, 40, 60),
        ([0.1, 0.5, 0.4, 0.3], {"higher": True}, 20, 40),
        ([0.5, 0.4, 0.3], {}, 30, None),
        # Equal scores are no progress, and the first of them is the best.
        ([2, 2, 2], {}, 10, 30),
        # What is no number is no progress, and never the best.
        ([2, NAN, NAN], {}, 10, 30),
        ([NAN, NAN], {}, None, 20),
        ([NAN, 2, 1], {}, 30, None),
        ([None, None], {}, None, 20),
        ([math.inf, math.inf, 5, 4], {}, 40, None),
        ([2, 1, 3], {"patience": None}, 20, None),
        ([1, 2], {"patience": 1}, 10, 20),
        # Too small a change is no progress, but such weights are better still.
        ([2, 1.99, 1.98], {"min_change": 0.1}, 30, 30),
        # Small changes add up, against the score that counted last.
        ([2, 1.9375, 1.875, 1.8125, 1.75], {"min_change": 0.125}, 50, None),
    ],
)
def test_the_best_and_the_end(scores, options, best, stopped):
    made, end = after(scores, **options)
    assert (made.found.step, end) == (best, stopped)
    assert made.found.score == (None if best is None else scores[best // 10 - 1])


def test_what_a_checkpoint_holds_decides_the_same():
    scores = [3, 2, math.inf, 2.5, 1.9, NAN, 2, 1]
    straight, end = after(scores, patience=3)
    for cut in range(1, len(scores)):
        first, _ = after(scores[:cut], patience=3)
        resumed = Selection(first.options, False, True)
        resumed.found = Found(**json.loads(json.dumps(selection.state_of(first))))
        for number, score in enumerate(scores[cut:], cut + 1):
            resumed.add(10 * number, score)
        assert resumed.found == straight.found
    assert end is None


def test_it_is_told():
    made, end = after([3, 2, 2.5, 2.1], min_change=0.05)
    assert made.told(end) == (
        "stopped early at step 40: eval.loss has not improved by 0.05 for 2 evaluations;"
        " best at step 20"
    )
    made, end = after([NAN], patience=1, metric="accuracy")
    assert made.told(end) == (
        "stopped early at step 10: eval.accuracy has not improved for 1 evaluation;"
        " it never was a number"
    )


def test_what_is_written(tmp_path):
    made, end = after([3, 2, 2.5, 2.1])
    made.write(RunDir(tmp_path), stopped=end, result=20)
    assert read_json(tmp_path / "eval" / "best.json") == {
        "metric": "loss",
        "higher_is_better": False,
        "weights": "best",
        "step": 20,
        "score": 2,
        "stopped": 40,
        "result": 20,
    }


def test_the_direction_is_the_metrics_own():
    metrics = ["loss", "token_accuracy"]
    for name, higher in (("loss", False), ("token_accuracy", True)):
        train = {"early_stop": EarlyStopConfig(patience=2, metric=name)}
        config = make_config(eval={"metrics": metrics}, train=train)
        made = selection.make(config, make_metrics(config.eval), {"step": 4, "since": 1})
        assert made is not None
        assert made.higher_is_better is higher
        assert made.keeps_best
        assert (made.found.step, made.found.since) == (4, 1)


def test_a_run_that_asks_for_none_has_none():
    config = make_config(eval={"every_steps": 1})
    assert selection.make(config, make_metrics(config.eval), None) is None
    config = make_config(
        eval={"metrics": ["loss"]},
        train={"early_stop": EarlyStopConfig(patience=2)},
        export={"weights": Weights.last},
    )
    made = selection.make(config, make_metrics(config.eval), None)
    assert made is not None
    assert not made.keeps_best


@pytest.mark.parametrize(
    ("where", "changes"),
    [
        ("train.early_stop.patience", {"train": {"early_stop": EarlyStopConfig(patience=2)}}),
        ("export.weights", {"export": {"weights": Weights.best}}),
    ],
)
def test_without_held_out_records_it_is_refused(where, changes):
    with pytest.raises(DataError, match="held out") as caught:
        selection.make(make_config(**changes), None, None)
    assert caught.value.problems[0].where == where
