"""Labelled texts."""

from typing import Any

import pytest

from launcher.data.formats import Labelled
from support.formats import read


def test_text_and_label_become_prompt_and_completion() -> None:
    assert read("classification", {"text": "hi", "label": "greeting"}) == Labelled("hi", "greeting")
    assert read("classification", {"text": "hi", "label": 1}) == Labelled("hi", "1")
    names = ["no", "yes"]
    for label in (1, "1", "yes"):
        assert read("classification", {"text": "hi", "label": label}, labels=names) == Labelled(
            "hi", "yes"
        )


@pytest.mark.parametrize(
    ("record", "labels", "found"),
    [
        ({"text": "hi", "label": 2}, ["no", "yes"], "label 2 is no index"),
        ({"text": "hi", "label": -1}, ["no", "yes"], "label -1 is no index"),
        ({"text": "hi", "label": "maybe"}, ["no", "yes"], "'maybe' is not in data.labels"),
        ({"text": "hi", "label": True}, [], "'label' is a truth value"),
        ({"text": "hi", "label": 0.5}, [], "'label' is a number, neither"),
        ({"text": "hi", "label": " "}, [], "the label is empty"),
        ({"text": "", "label": "x"}, [], "the text is empty"),
        ({"text": "hi"}, [], "no field 'label'"),
        ({"label": "x"}, [], "no field 'text'"),
    ],
)
def test_classification_refuses(record: dict[str, Any], labels: list[str], found: str) -> None:
    assert found in read("classification", record, labels=labels).found
