"""Several answers to one prompt, by score, by rank or in order."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.data import formats
from launcher.data.formats import BadRecord, Preference, Ranked
from support.formats import read

USER = {"role": "user", "content": "q"}


def said(text: str) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text}]


ULTRAFEEDBACK = {
    "source": "sharegpt",
    "instruction": "q",
    "models": ["x", "y", "z"],
    "completions": [
        {"model": "x", "response": "fair", "overall_score": 6.5, "fine-grained_score": 9.0},
        {"model": "y", "response": "bad", "overall_score": 2.0, "fine-grained_score": 9.0},
        {"model": "z", "response": "good", "overall_score": 8.0, "fine-grained_score": 1.0},
    ],
    "correct_answers": ["None"],
}
NECTAR = {
    "prompt": "\n\nHuman: q\n\nAssistant: ",
    "answers": [
        {"answer": "bad", "model": "x", "rank": 3.0},
        {"answer": "good", "model": "y", "rank": 1.0},
        {"answer": "fair", "model": "z", "rank": 2.0},
    ],
}
ANSWERS = (said("good"), said("fair"), said("bad"))


def test_the_layouts_of_known_data_sets_are_read() -> None:
    assert formats.detect([ULTRAFEEDBACK], {}) == formats.detect([NECTAR], {}) == "ranked"
    assert read("ranked", ULTRAFEEDBACK) == Ranked([USER], ANSWERS, (8.0, 6.5, 2.0))
    placed = Ranked([USER], ANSWERS, (-1.0, -2.0, -3.0), is_rated=False)
    assert read("ranked", NECTAR) == placed


def test_answers_without_numbers_stand_in_order_but_have_to_be_said_to() -> None:
    record = {"prompt": "q", "answers": ["good", "fair", "bad"]}
    placed = Ranked([USER], ANSWERS, (0.0, -1.0, -2.0), is_rated=False)
    assert read("ranked", record) == placed
    # They may as well be names of one thing (TriviaQA).
    with pytest.raises(BadRecord, match="no known format"):
        formats.detect([record], {})
    mapped = {"prompt": "q", "ways": ["good", "fair", "bad"]}
    assert read("ranked", mapped, columns={"answers": "ways"}) == placed


def test_every_two_answers_make_a_pair_or_the_best_and_the_worst_alone() -> None:
    ranked = read("ranked", ULTRAFEEDBACK)
    good, fair, bad = ANSWERS
    assert ranked.pairs() == [
        Preference([USER], good, fair, margin=1.5),
        Preference([USER], good, bad, margin=6.0),
        Preference([USER], fair, bad, margin=4.5),
    ]
    assert ranked.pairs(extremes=True) == [Preference([USER], good, bad, margin=6.0)]
    places = read("ranked", NECTAR).pairs()
    assert [pair.margin for pair in places] == [None] * 3


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6))
def test_ties_give_no_pair(scores: list[int]) -> None:
    texts = [f"answer {i}" for i in range(len(scores))]
    record = {"prompt": "q", "answers": texts, "scores": scores}
    ranked = read("ranked", record)
    differing = sum(a != b for i, a in enumerate(scores) for b in scores[:i])
    if not differing:
        assert ranked.rule == "tied_ratings"
        assert "rated the same" in ranked.found
        return
    score = dict(zip(texts, scores, strict=True))
    pairs = ranked.pairs()
    assert len(pairs) == differing
    for pair in pairs:
        chosen, rejected = (side[0]["content"] for side in (pair.chosen, pair.rejected))
        assert score[chosen] - score[rejected] == pair.margin > 0
    (extreme,) = ranked.pairs(extremes=True)
    assert extreme.margin == max(scores) - min(scores)


@pytest.mark.parametrize(
    ("change", "found", "hint"),
    [
        ({"completions": "good"}, "'completions' is no JSON", "json.dumps"),
        ({"completions": None}, "'completions' is null, not a list", '"completions": [{"resp'),
        ({"completions": [{"response": "a", "score": 1}]}, "1 answer to a prompt", "skip"),
        ({"scores": [1, 2]}, "'scores' is 2 numbers, beside 3 answers", "data.columns.scores="),
        ({"scores": [1, 2, float("nan")]}, "'scores' is nan, which rates", "finite number"),
        ({"scores": [1, 2, float("inf")]}, "'scores' is inf, which rates", "finite number"),
        ({"scores": [1, 2, "N/A"]}, "'scores' is 'N/A', which rates", "finite number"),
        ({"scores": [1, 2, True]}, "'scores' is True, which rates", "finite number"),
        ({"scores": [1, 2, None]}, "answer 3 has no 'scores'", "give every answer a number"),
        ({"scores": [1, 1, 1]}, "all 3 answers are rated the same", "data.bad_records=skip"),
        (
            {"completions": [{"response": "a", "score": 1}, {"response": "a", "score": 2}]},
            "all 2 answers are the same",
            "data.bad_records=skip",
        ),
        (
            {"completions": [{"response": "a", "score": 1}, {"response": "b"}]},
            "answer 2 has no 'overall_score'",
            "give every answer",
        ),
        ({"completions": [{"response": " ", "score": 1}, {}]}, "answer 1 has no text", "response"),
        ({"completions": ["a", " "], "scores": [1, 2]}, "answer 2 is empty", "remove"),
        (
            {"completions": ["a", [{**USER, "content": "r"}]], "scores": [1, 2]},
            "answer 2 ends with user",
            "messages",
        ),
    ],
)
def test_ranked_answers_that_are_refused(change: dict[str, Any], found: str, hint: str) -> None:
    refused = read("ranked", ULTRAFEEDBACK | change)
    assert found in refused.found
    assert hint in refused.hint
