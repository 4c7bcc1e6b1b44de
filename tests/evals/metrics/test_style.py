"""Style of answers: the distance by hand, and the classifier against scikit-learn's."""

from __future__ import annotations

import random

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from launcher.config.schema import EvalConfig
from launcher.evals.comparison.paired import Resampling, compare
from launcher.evals.metric import make_metrics
from launcher.evals.metrics.style import FUNCTION_WORDS, features, words
from launcher.evals.metrics.style_classifier import fit, predict
from launcher.evals.records import Generation
from support.results import results_of

DISTANCE, CLASSIFIER = make_metrics(EvalConfig(metrics=["style_distance", "style_classifier"]))
THINGS = [
    f"{kind}{part}"
    for kind in ("book", "coat", "tool", "wine")
    for part in ("rack", "case", "box", "bag", "shelf")
]
PLAIN = "The {thing} has {n} parts. It was made in {year}."
FORMAL = "It appears that the {thing} may have {n} parts; it was possibly made in {year}."
CASUAL = "Hey, you'll love this! Your {thing}'s got {n} parts, and it's from {year}!"


def told(*styles: str, count: int = 60, reference: str = CASUAL) -> list[Generation]:
    """Answers in the styles by turns; references in the style `reference`."""
    rng, made = random.Random(0), []
    for i in range(count):
        facts = {
            "thing": rng.choice(THINGS),
            "n": rng.randint(2, 9),
            "year": rng.randint(1900, 1999),
        }
        prompt = "What about the {thing}? {n}, {year}".format(**facts)
        answer = styles[i % len(styles)].format(**facts)
        made.append(Generation(i, f"d:{i}", prompt, reference.format(**facts), answer))
    return made


def classified(base: list[Generation], tuned: list[Generation]) -> list[float]:
    return [
        CLASSIFIER.scores(side.sum(0, keepdims=True))[0] for side in CLASSIFIER.paired(base, tuned)
    ]


# ---- distance


def test_answers_like_the_references_have_no_distance():
    assert DISTANCE.score(told(CASUAL)) == pytest.approx(0, abs=1e-9)


def test_distance_falls_with_the_share_of_answers_in_the_style():
    shares = [told(PLAIN), told(CASUAL, PLAIN, PLAIN), told(CASUAL, CASUAL, PLAIN), told(CASUAL)]
    scores = [DISTANCE.score(records) for records in shares]
    assert scores == sorted(scores, reverse=True)
    assert len(set(scores)) == 4


def test_the_other_style_is_further_than_the_plain_one():
    assert DISTANCE.score(told(FORMAL)) > DISTANCE.score(told(PLAIN)) > 0.3


def test_function_words_are_burrows_delta():
    """Worked out anew from Burrows 2002: mean |difference of z-scores| over the words' rates."""
    records = told(CASUAL, FORMAL, reference=PLAIN)
    other = told(PLAIN, FORMAL, CASUAL)
    records = [
        Generation(r.id, r.where, r.prompt, o.answer, r.answer)
        for r, o in zip(records, other, strict=True)
    ]

    def rates(text: str) -> list[float]:
        found = words(text)
        return [found.count(word) / len(found) for word in FUNCTION_WORDS]

    target = np.array([rates(r.reference) for r in records])
    answers = np.array([rates(r.answer) for r in records])
    least = 1 / np.mean([len(words(r.reference)) for r in records])
    delta = np.abs(answers.mean(0) - target.mean(0)) / np.maximum(target.std(0), least)
    found = DISTANCE.statistics(records)
    mine = np.abs(found[:, 1:].sum(0) / found[:, 0].sum())[-len(FUNCTION_WORDS) :]
    assert mine == pytest.approx(delta)


def test_features_by_hand():
    text = "Hey! You'll see, perhaps: it's fine. Please sit"
    found = words(text)
    seen = dict.fromkeys(["you'll", "see", "fine"], 2) | {"sit": 1}
    from collections import Counter

    values = features(text, found, ["sit"], Counter(seen))
    assert found == ["hey", "you'll", "see", "perhaps", "it's", "fine", "please", "sit"]
    assert values[:2] == [8, 8 / 3]
    marks = dict(zip(".,;:!?", values[2:8], strict=True))
    assert marks == {".": 1 / 8, ",": 1 / 8, ";": 0, ":": 1 / 8, "!": 1 / 8, "?": 0}
    contractions, second_person, hedges, courtesies, types, known = values[13:19]
    assert (contractions, second_person, hedges, courtesies) == (2 / 8, 0, 1 / 8, 1 / 8)
    # "sit" stands in its own reference alone, so it says what the answer is about.
    assert (types, known) == (1, 3 / 8)


@pytest.mark.parametrize("answer", ["", "   ", "!!!", "\u2603", "a" * 10_000, "it's\x00"])
def test_odd_answers_have_a_finite_distance(answer):
    records = told(PLAIN, count=5)
    odd = [Generation(r.id, r.where, r.prompt, r.reference, answer) for r in records]
    assert 0 < DISTANCE.score(odd) < 1000


def test_without_references_there_is_no_distance():
    bare = [Generation(r.id, r.where, r.prompt, " ", r.answer) for r in told(PLAIN)]
    assert np.isnan(DISTANCE.score(bare))
    assert not DISTANCE.counts(DISTANCE.statistics(bare)).any()


def test_sums_over_parts_give_the_distance_of_the_whole():
    records = told(PLAIN, CASUAL, FORMAL)
    found = DISTANCE.statistics(records)
    total = np.stack([found[:20].sum(0) + found[20:].sum(0)])
    assert DISTANCE.scores(total)[0] == pytest.approx(DISTANCE.score(records))


# ---- classifier


def test_tuned_answers_in_the_style_are_taken_for_it_and_the_bases_are_not():
    base, tuned = classified(told(PLAIN), told(CASUAL))
    assert base < 0.05
    assert tuned > 0.95


def test_what_changed_in_half_of_the_answers_is_seen_in_half():
    tuned = told(CASUAL, PLAIN, count=80)
    assert classified(told(PLAIN, count=80), tuned)[1] == pytest.approx(0.5, abs=0.1)


def test_naming_the_right_things_is_no_style():
    """A base that is wrong on the facts but in the style cannot be told by the facts."""
    right = told(CASUAL, count=100)
    wrong = [
        Generation(r.id, r.where, r.prompt, r.reference, other.answer)
        for r, other in zip(right, right[1:] + right[:1], strict=True)
    ]
    base, tuned = classified(wrong, right)
    assert abs(tuned - base) < 0.35


def test_a_classifier_judges_no_record_that_it_has_learned_from():
    """Answers that are noise cannot be told from noise; a classifier that knew them could."""
    rng = np.random.default_rng(0)

    def noise() -> str:
        return "".join(rng.choice(list("abcdefgh .,"), 60))

    made = [Generation(i, "d:1", "q", noise(), noise()) for i in range(120)]
    same = [Generation(r.id, r.where, r.prompt, r.reference, r.reference) for r in made]
    base, tuned = classified(made, same)
    assert 0.3 < base < 0.7
    assert 0.3 < tuned < 0.7


def test_few_records_and_one_model_alone_are_not_judged():
    assert np.isnan(classified(told(PLAIN, count=20), told(CASUAL, count=20))).all()
    assert np.isnan(CLASSIFIER.score(told(CASUAL)))
    assert CLASSIFIER.pairwise


def test_both_have_intervals_and_verdicts():
    sides = [results_of(generations=told(style)) for style in (PLAIN, CASUAL)]
    rows = compare(*sides, [DISTANCE, CLASSIFIER], Resampling(count=500))["metrics"]
    assert [row["verdict"] for row in rows.values()] == ["better", "better"]
    assert rows["style_distance"]["tuned"] == pytest.approx(0, abs=1e-9)
    assert rows["style_classifier"]["improved"] > 50


@pytest.mark.parametrize("penalty", [0.1, 1.0, 10.0])
def test_the_regression_is_that_of_scikit_learn(penalty):
    rng = np.random.default_rng(2)
    features_ = rng.normal(size=(80, 12))
    labels = (features_[:, 0] + rng.normal(size=80) > 0.5).astype(float)
    weights = fit(features_, labels, penalty)
    theirs = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000).fit(features_, labels)
    assert weights[:-1] == pytest.approx(theirs.coef_[0], abs=1e-5)
    assert weights[-1] == pytest.approx(theirs.intercept_[0], abs=1e-5)
    assert predict(features_, weights) == pytest.approx(
        theirs.predict_proba(features_)[:, 1], abs=1e-5
    )
