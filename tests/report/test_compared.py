"""Words that only one of two answers has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.report.compared import LONGEST, marked

texts = st.lists(st.sampled_from(["a", "b", "cars", " ", "\n", ",", "é", "7"]), max_size=12).map(
    "".join
)


@given(texts, texts)
def test_segments_are_the_texts_and_what_is_not_marked_is_in_both(one, other):
    left, right = marked(one, other)
    assert "".join(text for text, _ in left) == one
    assert "".join(text for text, _ in right) == other
    if any(only for _, only in (*left, *right)):
        kept = ["".join(text for text, only in side if not only) for side in (left, right)]
        assert kept[0] == kept[1]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("the same", "the same"),
        ("nothing in common", "7 + 7 = 14, so it is 14"),
        ("word " * LONGEST, "word " * LONGEST + "more"),
        ("", "an answer"),
    ],
)
def test_no_marks_where_they_would_say_nothing(one, other):
    assert marked(one, other) == ([(one, False)], [(other, False)])


def test_marks_are_whole_words():
    left, _ = marked("It carries 47 cars.", "It carries 48 cars.")
    assert left == [("It carries ", False), ("47", True), (" cars.", False)]
