"""The metrics, on records small enough to work out by hand."""

import math

import pytest

from launcher.config.schema import EvalConfig, variants
from launcher.config.schema.variants import METRICS
from launcher.core.errors import ConfigError
from launcher.core.registry import load
from launcher.evals.metric import make_metrics, score_all
from launcher.evals.metrics.exact_match import ExactMatch, normalise
from launcher.evals.records import Generation, LossRecord
from support.results import results_of

LOSSES = [LossRecord(0, 2.0, 4, 1), LossRecord(1, 7.0, 6, 6), LossRecord(2, 0.0, 0, 0)]
GSM8K = "#### (-?[0-9.,]+)"


def answer(text: str, reference: str) -> Generation:
    return Generation(0, "d.jsonl:1", "q", reference, text)


def test_scores_are_ratios_of_sums_over_targets():
    scores = score_all(
        make_metrics(EvalConfig(metrics=["loss", "perplexity", "token_accuracy"])),
        results_of(losses=LOSSES),
    )
    assert scores == {
        "loss": pytest.approx(0.9),
        "perplexity": pytest.approx(math.exp(0.9)),
        "token_accuracy": pytest.approx(0.7),
    }


def test_every_row_of_the_table_is_a_metric_with_its_name(tmp_path):
    (tmp_path / "schema.json").write_text("{}")
    schema = str(tmp_path / "schema.json")
    metrics = make_metrics(EvalConfig(metrics=list(METRICS), json_schema=schema))
    assert [metric.name for metric in metrics] == list(METRICS)
    # What is told of single tokens lies in the records of losses.
    needs = [row.records.replace("tokens", "loss") for row in METRICS.values()]
    assert [metric.needs for metric in metrics] == needs


def test_metrics_keep_their_order_and_repeats_are_dropped():
    metrics = make_metrics(EvalConfig(metrics=["token_accuracy", "loss", "token_accuracy"]))
    assert [metric.name for metric in metrics] == ["token_accuracy", "loss"]


def test_unknown_metric_is_a_config_error_with_a_close_name():
    with pytest.raises(ConfigError, match="perplexity"):
        make_metrics(EvalConfig(metrics=["perplexty"]))


def test_a_score_without_any_counting_record_is_nan():
    metric = make_metrics(EvalConfig(metrics=["loss"]))[0]
    assert math.isnan(metric.score([LossRecord(0, 0.0, 0, 0)]))


def test_perplexity_of_a_huge_loss_is_infinite():
    metric = make_metrics(EvalConfig(metrics=["perplexity"]))[0]
    assert metric.score([LossRecord(0, 5000.0, 1, 0)]) == math.inf


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" 72 ", "72"),
        ("1,234,567", "1234567"),
        ("-1,000.", "-1000"),
        ("3.50", "3.50"),
        (".5", ".5"),
        ("1,23", "1,23"),
        ("Paris, France.", "Paris, France."),
        ("", ""),
    ],
)
def test_normalise(text, expected):
    assert normalise(text) == expected


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("so 3 + 4 = 7\n#### 7", "#### 7", True),
        ("#### 7\nno, wait\n#### 8.", "#### 8", True),
        ("#### 1,000", "it is\n#### 1000", True),
        ("#### 7", "#### 8", False),
        ("the answer is 7", "#### 7", False),
        ("#### 7", "no final answer", None),
    ],
)
def test_exact_match_compares_the_last_match_of_the_pattern(text, reference, expected):
    assert ExactMatch(EvalConfig(answer_pattern=GSM8K)).match(text, reference) is expected


def test_exact_match_takes_the_whole_match_without_a_group_and_the_whole_text_without_a_pattern():
    assert ExactMatch(EvalConfig(answer_pattern="yes|no")).match("well, yes it is", "yes")
    whole = ExactMatch(EvalConfig())
    assert whole.match(" yes\n", "yes")
    assert whole.match("yes it is", "yes") is False


def test_exact_match_leaves_out_records_that_cannot_be_judged():
    metric = ExactMatch(EvalConfig(answer_pattern=GSM8K))
    records = [answer("#### 1", "#### 1"), answer("#### 2", "#### 3"), answer("#### 2", "none")]
    assert metric.score(records) == pytest.approx(0.5)


def test_a_group_outside_the_match_is_empty_text():
    metric = ExactMatch(EvalConfig(answer_pattern="a(b)?"))
    assert metric.match("a", "a") is True
    assert metric.match("a", "ab") is False


def test_rows_say_of_metrics_what_their_classes_do():
    rows = dict(METRICS)
    for options in variants.OPTIONS["objective"].values():
        rows |= options.own_metrics
    for name, row in rows.items():
        assert load(row.path).higher_is_better is not row.lower_is_better, name
