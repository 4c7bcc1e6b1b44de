"""Which metrics two runs are compared by."""

from pathlib import Path

import pytest

from launcher.config.schema import Config, EvalConfig
from launcher.core.errors import DataError
from launcher.core.rundir import RunDir
from launcher.evals.records import Results
from launcher.scoring.compare import Side, shared_metrics


def side(name: str, *metrics: str) -> Side:
    config = Config(eval=EvalConfig(metrics=list(metrics)))
    return Side(name, RunDir(Path("runs/any")), config, Results(), {})


@pytest.mark.parametrize(
    ("first", "expected"),
    [("run:base", ["loss", "style_classifier"]), ("run", ["loss"]), ("run:10", ["loss"])],
)
def test_what_learns_from_the_base_needs_a_base_to_come_first(first, expected):
    names = ("loss", "style_classifier")
    found = shared_metrics(side(first, *names), side("other", *names, "chrf"))
    assert [metric.name for metric in found] == expected


def test_runs_without_a_common_metric_are_refused():
    with pytest.raises(DataError, match="no metric in common"):
        shared_metrics(side("run", "loss"), side("other", "chrf"))
