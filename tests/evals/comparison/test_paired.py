"""The paired comparison: closed forms, honest intervals, refusals."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.config.schema import EvalConfig
from launcher.core.errors import DataError
from launcher.evals.comparison.paired import CHUNK, Resampling, compare
from launcher.evals.metric import make_metrics
from launcher.evals.records import Generation, LossRecord, Results
from support.results import results_of

LOSS = make_metrics(EvalConfig(metrics=["loss", "perplexity", "token_accuracy"]))
MATCH = make_metrics(EvalConfig(metrics=["exact_match"]))


def losses(sums, targets=None, correct=None, ids=None) -> Results:
    count = len(sums)
    columns = zip(
        range(count) if ids is None else ids,
        sums,
        [1] * count if targets is None else targets,
        [0] * count if correct is None else correct,
        strict=True,
    )
    return results_of(
        losses=[LossRecord(int(i), float(s), int(t), int(c)) for i, s, t, c in columns]
    )


def answers(right) -> Results:
    return results_of(
        generations=[
            Generation(i, f"d.jsonl:{i + 1}", "q", "yes", "yes" if ok else "no")
            for i, ok in enumerate(right)
        ]
    )


def test_identical_models_give_no_difference_of_no_width():
    side = losses(np.linspace(1, 9, 40), targets=range(1, 41), correct=range(40))
    for row in compare(side, side, LOSS)["metrics"].values():
        assert row["difference"] == 0
        assert row["interval"] == [0, 0]
        assert row["verdict"] == "no evidence"
        assert (row["improved"], row["worsened"]) == (0, 0)


def test_one_record_has_no_interval():
    sides = losses([2.0], targets=[9]), losses([1.0], targets=[9])
    row = compare(*sides, LOSS)["metrics"]["loss"]
    assert (row["records"], row["interval"], row["verdict"]) == (1, [None, None], "no evidence")
    assert compare(answers([0]), answers([1]), MATCH)["metrics"]["exact_match"]["interval"] == [
        None,
        None,
    ]


def test_a_constant_gain_has_a_known_interval():
    base = losses(np.linspace(2, 4, 50))
    tuned = losses(np.linspace(2, 4, 50) - 0.5)
    row = compare(base, tuned, LOSS)["metrics"]["loss"]
    assert row["base"] == pytest.approx(3.0)
    assert row["tuned"] == pytest.approx(2.5)
    assert row["interval"] == pytest.approx([-0.5, -0.5])
    assert (row["verdict"], row["improved"], row["records"]) == ("better", 50, 50)


def test_interval_of_a_mean_agrees_with_the_normal_approximation():
    rng = np.random.default_rng(3)
    gain = rng.normal(0.3, 1.0, 800)
    base = rng.normal(5.0, 2.0, 800)
    row = compare(losses(base), losses(base - gain), LOSS, Resampling(count=8000))["metrics"][
        "loss"
    ]
    half = 1.96 * gain.std() / math.sqrt(len(gain))
    assert row["interval"] == pytest.approx([-gain.mean() - half, -gain.mean() + half], abs=0.006)


def test_records_weigh_by_their_target_tokens():
    base = losses([10.0, 1.0], targets=[10, 1])
    tuned = losses([5.0, 3.0], targets=[10, 1])
    row = compare(base, tuned, LOSS)["metrics"]["loss"]
    assert row["difference"] == pytest.approx(8 / 11 - 1)
    assert (row["improved"], row["worsened"]) == (1, 1)


def test_perplexity_is_transformed_after_summing():
    base = losses([4.0, 2.0], targets=[2, 2])
    tuned = losses([2.0, 2.0], targets=[2, 2])
    row = compare(base, tuned, LOSS)["metrics"]["perplexity"]
    assert row["difference"] == pytest.approx(math.exp(1.0) - math.exp(1.5))


def test_direction_follows_the_metric():
    worse = compare(losses([1.0] * 20), losses([2.0] * 20), LOSS)["metrics"]
    assert worse["loss"]["verdict"] == worse["perplexity"]["verdict"] == "worse"
    base, tuned = losses([1.0] * 20, correct=[0] * 20), losses([1.0] * 20, correct=[1] * 20)
    better = compare(base, tuned, LOSS)["metrics"]["token_accuracy"]
    assert (better["verdict"], better["difference"]) == ("better", 1.0)


def test_exact_match_counts_records_won_and_lost():
    base = [True] * 30 + [False] * 70
    tuned = [True] * 28 + [False] * 2 + [True] * 40 + [False] * 30
    row = compare(answers(base), answers(tuned), MATCH)["metrics"]["exact_match"]
    assert (row["improved"], row["worsened"]) == (40, 2)
    assert row["difference"] == pytest.approx(0.38)
    assert row["verdict"] == "better"


@pytest.mark.parametrize(("won", "verdict"), [(5, "no evidence"), (6, "better")])
def test_a_handful_of_changed_records_proves_nothing(won, verdict):
    base, tuned = answers([False] * won), answers([True] * won)
    row = compare(base, tuned, MATCH)["metrics"]["exact_match"]
    assert row["difference"] == 1.0
    assert row["verdict"] == verdict


def test_interval_holds_the_true_difference_at_about_the_nominal_rate():
    rng = np.random.default_rng(0)
    true, hits, trials = 0.2, 0, 300
    for trial in range(trials):
        targets = rng.integers(5, 60, 120)
        base = rng.gamma(4.0, 0.5, 120) * targets
        tuned = base - rng.normal(true, 0.8, 120) * targets
        result = compare(
            losses(base, targets), losses(tuned, targets), LOSS[:1], Resampling(trial, 500)
        )
        low, high = result["metrics"]["loss"]["interval"]
        hits += low <= -true <= high
    assert 0.90 <= hits / trials <= 0.985


@pytest.mark.slow
def test_no_difference_is_rarely_called_one():
    rng = np.random.default_rng(1)
    calls, trials = 0, 300
    for trial in range(trials):
        base, tuned = answers(rng.random(100) < 0.4), answers(rng.random(100) < 0.4)
        row = compare(base, tuned, MATCH, Resampling(trial, 500))["metrics"]["exact_match"]
        calls += row["verdict"] != "no evidence"
    assert calls / trials <= 0.09


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.floats(0, 50), st.floats(0, 50), st.integers(1, 40), st.integers(0, 9)),
        min_size=2,
        max_size=30,
    )
)
def test_swapping_base_and_tuned_mirrors_the_result(records):
    first, second, targets, correct = zip(*records, strict=True)
    a, b = losses(first, targets, correct), losses(second, targets)
    forth, back = (compare(*pair, LOSS, Resampling(count=200)) for pair in ((a, b), (b, a)))
    mirrored = {"better": "worse", "worse": "better", "no evidence": "no evidence"}
    for name, row in forth["metrics"].items():
        other = back["metrics"][name]
        assert row["difference"] == -other["difference"]
        low, high = other["interval"]
        assert row["interval"] == pytest.approx([-high, -low], rel=1e-9, abs=1e-12)
        assert row["verdict"] == mirrored[other["verdict"]]
        assert (row["improved"], row["worsened"]) == (other["worsened"], other["improved"])


def test_the_same_seed_gives_the_same_interval_in_any_order_of_records():
    rng = np.random.default_rng(5)
    base, tuned = rng.random(60), rng.random(60)
    shuffled = rng.permutation(60)
    straight = compare(losses(base), losses(tuned), LOSS, Resampling(7))
    mixed = compare(
        losses(base[shuffled], ids=shuffled),
        losses(tuned[shuffled], ids=shuffled),
        LOSS,
        Resampling(7),
    )
    assert straight == mixed
    assert straight != compare(losses(base), losses(tuned), LOSS, Resampling(8))


def test_resampling_in_chunks_draws_what_one_go_draws(monkeypatch):
    base, tuned = losses(np.arange(50.0)), losses(np.arange(50.0)[::-1])
    whole = compare(base, tuned, LOSS, Resampling(1, 300))
    assert CHUNK > 50 * 300
    monkeypatch.setattr("launcher.evals.comparison.paired.CHUNK", 50 * 7)
    signs: list[None] = []
    resampling = Resampling(1, 300, lambda: signs.append(None))
    assert compare(base, tuned, LOSS, resampling) == whole
    assert len(signs) == -(-300 // 7)


def test_different_records_are_refused_with_examples():
    with pytest.raises(DataError, match=r"1 scored only for base \(e\.g\. 0\)") as error:
        compare(losses([1.0, 1.0]), losses([1.0], ids=[1]), LOSS)
    assert error.value.exit_code == 3


def test_different_targets_of_the_same_records_are_refused():
    with pytest.raises(DataError, match="other targets"):
        compare(losses([1.0], targets=[3]), losses([1.0], targets=[4]), LOSS)


def test_one_side_without_results_is_refused_and_two_are_left_out():
    with pytest.raises(DataError, match="2 scored only for tuned"):
        compare(Results(), losses([1.0, 2.0]), LOSS)
    assert compare(Results(), Results(), LOSS)["metrics"] == {}


def test_a_diverged_model_is_worse_and_the_result_stays_json():
    row = compare(losses([1.0] * 9), losses([math.nan] * 9), LOSS)["metrics"]["loss"]
    assert row["tuned"] is None
    assert row["interval"] == [None, None]
    assert row["verdict"] == "worse"
