"""Pairs of answers, one of which is preferred."""

from typing import Any

import pytest

from launcher.data import formats
from launcher.data.formats import Preference
from support.formats import read

USER = {"role": "user", "content": "2 + 2?"}


GOOD = {"role": "assistant", "content": "4"}


BAD = {"role": "assistant", "content": "5"}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
        {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]},
        {"prompt": [USER], "chosen": GOOD, "rejected": BAD},
        {"chosen": [USER, GOOD], "rejected": [USER, BAD]},
        {
            "input": {"messages": [USER]},
            "preferred_output": [GOOD],
            "non_preferred_output": [BAD],
        },
    ],
)
def test_preference_layouts_are_one(record: dict[str, Any]) -> None:
    assert formats.detect([record], {}) == "preference"
    assert read("preference", record) == Preference([USER], [GOOD], [BAD])


def test_preference_without_a_prompt_has_whole_texts() -> None:
    assert read("preference", {"chosen": "4", "rejected": "5"}) == Preference([], [GOOD], [BAD])


def said(*texts: str) -> list[dict[str, Any]]:
    """A user, and the assistant, in turns."""
    return [{"role": ("user", "assistant")[i % 2], "content": t} for i, t in enumerate(texts)]


def test_the_prompt_of_a_dialogue_in_one_text_is_what_both_begin_with() -> None:
    """Anthropic's HH."""
    begin = "\n\nHuman: Hi!\n\nAssistant: Hello.\n\nHuman: Add 2 and 2.\nNow!\n\nAssistant:"
    record = {"chosen": f"{begin} 4\n\nIndeed.", "rejected": f"{begin} 5"}
    assert formats.detect([record], {}) == "preference"
    prompt = said("Hi!", "Hello.", "Add 2 and 2.\nNow!")
    good = {"role": "assistant", "content": "4\n\nIndeed."}
    assert read("preference", record) == Preference(prompt, [good], [BAD])
    # The same with the prompt beside the answers.
    given = {"prompt": begin, "chosen": "4\n\nIndeed.", "rejected": "5"}
    assert read("preference", given) == Preference(prompt, [good], [BAD])
    # Dialogues that part earlier have answers of several turns.
    other = {**record, "rejected": "\n\nHuman: Hi!\n\nAssistant: What?"}
    assert read("preference", other).prompt == said("Hi!")
    assert len(read("preference", other).chosen) == 3
    unsaid = {**record, "rejected": f"{begin} "}
    assert "rejected ends with user" in read("preference", unsaid).found


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("The sky is great.", "The sky is green.", "The sky is"),
        ("Sum:\n2 + 2 = 4", "Sum:\n2 + 2 = 5", "Sum:\n2 + 2 ="),
        ("a b", "a b c", "a"),
        ("a b", "ab", ""),
        ("4", "5", ""),
        (" 4", " 5", ""),
        ("Human: a", "Human: b", "Human:"),
    ],
)
def test_words_that_both_texts_begin_with_are_the_prompt(
    chosen: str, rejected: str, prompt: str
) -> None:
    """TRL's implicit prompt, cut between words."""
    found = read("preference", {"chosen": chosen, "rejected": rejected})
    assert found.prompt == ([{"role": "user", "content": prompt}] if prompt else [])
    answers = [side[0]["content"] for side in (found.chosen, found.rejected)]
    assert [prompt + answer for answer in answers] == [chosen, rejected]


def test_ratings_give_a_margin() -> None:
    """UltraFeedback, binarized: both answers repeat the prompt."""
    both = {"chosen": [USER, GOOD], "rejected": [USER, BAD], "messages": [USER, GOOD]}
    record = {"prompt": "2 + 2?", **both, "score_chosen": 8.5, "score_rejected": 6.0}
    assert formats.detect([record], {}) == "preference"
    assert read("preference", record) == Preference([USER], [GOOD], [BAD], margin=2.5)
    half = record | {"score_rejected": None}
    assert read("preference", half).margin is None
    columns = {"score_chosen": "", "score_rejected": ""}
    assert read("preference", record, columns=columns).margin is None


@pytest.mark.parametrize(
    ("ratings", "found", "hint", "rule"),
    [
        ((3, 3.0), "rated the same", "data.columns.score_chosen=", "tied_ratings"),
        ((1, 3), "rejected answer is rated higher, by 2", "swap", "broken"),
        ((float("nan"), 3), "'score_chosen' is nan", "data.columns.score_chosen=", "broken"),
        ((3, float("inf")), "'score_rejected' is inf", "data.columns.score_rejected=", "broken"),
        ((3, -1e999), "'score_rejected' is -inf", "finite number", "broken"),
        (("good", 1), "'score_chosen' is 'good'", "finite number", "broken"),
        ((True, 0), "'score_chosen' is True", "finite number", "broken"),
    ],
)
def test_ratings_that_say_nothing(
    ratings: tuple[Any, Any], found: str, hint: str, rule: str
) -> None:
    names = ("score_chosen", "score_rejected")
    record = {"prompt": "p", "chosen": "a", "rejected": "b"} | dict(
        zip(names, ratings, strict=True)
    )
    refused = read("preference", record)
    assert found in refused.found
    assert hint in refused.hint
    assert refused.rule == rule
    pair = read("preference", record, columns=dict.fromkeys(names, ""))
    assert pair.margin is None


def test_a_margin_may_be_given_itself() -> None:
    record = {"prompt": "2 + 2?", "chosen": "4", "rejected": "5", "margin": "0.5"}
    assert read("preference", record).margin == 0.5
    refused = read("preference", record | {"margin": float("nan")})
    assert "data.columns.margin=" in refused.hint
    assert read("preference", record | {"margin": 0}).rule == "tied_ratings"


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"chosen": "a"}, "no field 'rejected'"),
        ({"prompt": "p", "chosen": "a", "rejected": "a"}, "are the same"),
        ({"prompt": "p", "chosen": "", "rejected": "a"}, "chosen is empty"),
        ({"prompt": "p", "chosen": 4, "rejected": "a"}, "'chosen' is a number"),
        ({"prompt": "p", "chosen": [USER], "rejected": [BAD]}, "chosen ends with user"),
        ({"prompt": [{}], "chosen": "a", "rejected": "b"}, "message 1 has no role"),
    ],
)
def test_preference_refuses(record: dict[str, Any], found: str) -> None:
    assert found in read("preference", record).found
