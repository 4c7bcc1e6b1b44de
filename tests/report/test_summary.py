"""The comparison in words."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.report import summary


def row(verdict, **changes):
    return {
        "base": 3.2123,
        "tuned": 1.0,
        "difference": -2.2123,
        "interval": [-2.5, -2.0],
        "verdict": verdict,
        "records": 200,
        "unit": "",
        "needs": "loss",
        **changes,
    }


def comparison(**rows):
    return {"metrics": rows, "confidence": 0.95}


@pytest.mark.parametrize(
    ("verdicts", "expected"),
    [
        (["better", "better"], "better"),
        (["better", "no evidence"], "better"),
        (["worse", "no evidence"], "worse"),
        (["better", "worse"], "mixed"),
        (["no evidence"], "no evidence"),
        ([], "no evidence"),
    ],
)
def test_outcome_over_all_metrics(verdicts, expected):
    rows = {f"m{i}": row(verdict) for i, verdict in enumerate(verdicts)}
    assert summary.outcome(comparison(**rows)) == expected


def test_the_sentence_quotes_generated_answers_first():
    match = row(
        "better", base=0.035, tuned=0.715, difference=0.68, interval=[0.61, 0.75], unit="share"
    )
    made = comparison(loss=row("better"), exact_match={**match, "needs": "generation"})
    assert summary.sentence(made) == (
        "The tuned model is better than the base: exact_match went from 3.5 % to 71.5 % "
        "(change +68.0 pts, 95 % interval +61.0 to +75.0 pts, 200 held-out records)."
    )


UNMOVED = {"base": 0.0, "tuned": 0.0, "difference": 0.0, "interval": [0.0, 0.0], "unit": "share"}


def test_the_sentence_quotes_a_metric_that_moved_and_names_the_answers_that_did_not():
    still = row("no evidence", **UNMOVED, needs="generation")
    text = summary.sentence(comparison(exact_match=still, loss=row("better")))
    assert text == (
        "The tuned model is better than the base: loss went from 3.212 to 1.000 "
        "(change -2.212, 95 % interval -2.500 to -2.000, 200 held-out records). "
        "No evidence of a change in exact_match (0.0 % to 0.0 %)."
    )
    accuracy = row("no evidence", **UNMOVED)
    text = summary.sentence(comparison(loss=row("better"), accuracy=accuracy))
    assert text.endswith(". No evidence of a change in accuracy (0.0 % to 0.0 %).")


def test_a_mixed_sentence_quotes_a_metric_of_each_kind():
    text = summary.sentence(
        comparison(loss=row("better"), f1=row("worse", base=0.5, tuned=0.25, difference=-0.25))
    )
    assert text.startswith(
        "The tuned model is better than the base in some metrics and worse in others: "
        "loss went from 3.212 to 1.000"
    )
    assert "; f1 went from 0.5000 to 0.2500" in text


@pytest.mark.parametrize("verdict", ["better", "no evidence"])
def test_the_metric_that_leads_is_told(verdict):
    share = row(verdict, base=0.5, tuned=0.9, difference=0.4, interval=[0.3, 0.5], unit="share")
    rows = {"loss": row(verdict), "class_f1": share, "accuracy": {**share, "leads": True}}
    text = summary.sentence(comparison(**rows))
    assert ": accuracy went from 50.0 % to 90.0 %" in text


@given(
    st.dictionaries(
        st.sampled_from(["loss", "accuracy", "exact_match", "f1"]),
        st.tuples(
            st.sampled_from(["better", "worse", "no evidence"]),
            st.sampled_from(["loss", "generation", "classes"]),
        ),
        min_size=1,
    )
)
def test_what_the_sentence_quotes_first_bears_its_verdict(verdicts):
    made = comparison(**{n: row(verdict, needs=needs) for n, (verdict, needs) in verdicts.items()})
    result = summary.outcome(made)
    quoted = summary.sentence(made).split(": ", 1)[1].split(" went")[0]
    assert verdicts[quoted][0] == ("better" if result == "mixed" else result)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (None, ""),
        (1234, "about 1,300 would decide"),
        (4000, "about 4,000 would decide"),
        (7, "about 7 would decide"),
        (391_823, "too small a difference to decide: about 400,000 records would be needed"),
    ],
)
def test_the_records_that_would_decide(count, expected):
    assert summary.needed(row("no evidence", needed=count)) == expected


def test_the_sentence_copes_with_nothing_and_with_missing_numbers():
    assert "Nothing was compared" in summary.sentence(comparison())
    diverged = row("worse", tuned=None, difference=None, interval=[None, None], records=1)
    text = summary.sentence(comparison(loss=diverged))
    assert "worse than the base: loss went from 3.212 to -" in text
    assert "1 held-out record)" in text


def test_the_table_is_aligned_and_complete():
    text = summary.table(comparison(loss=row("better"), token_accuracy=row("no evidence")))
    header, *lines = text.split("\n")
    assert header.split("  ")[0] == "metric"
    assert len(lines) == 2
    assert all("3.212" in line and "-2.500 to -2.000" in line for line in lines)
    assert {line.index("3.212") for line in lines} == {header.index("base") - 1}
    assert lines[1].endswith("no evidence")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "-"),
        (0.0, "0.0000"),
        (1.01342, "1.013"),
        (24.8312, "24.83"),
        (1234.56, "1235"),
        (0.01234, "0.0123"),
        (123456.0, "1.23e+05"),
        (1e-7, "1e-07"),
    ],
)
def test_numbers(value, expected):
    assert summary.number(value) == expected


def test_shares_are_per_cent_and_their_changes_points():
    assert summary.number(0.5, "share") == "50.0 %"
    assert summary.number(-0.01, "share", signed=True) == "-1.0 pts"
