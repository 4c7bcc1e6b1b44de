"""Answers that are good or bad, each by itself."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.data import formats
from launcher.data.formats import Unpaired
from launcher.record_fields import BAD, GOOD, VERDICTS
from support.formats import read

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    "record",
    [
        {"prompt": "q", "completion": "a", "label": True},
        {"prompt": [USER], "completion": [ANSWER], "label": True},
        {"prompt": [USER], "completion": [USER, ANSWER], "label": True},
        {"messages": [USER, ANSWER], "label": True},
        {"messages": [USER, ANSWER], "kto_tag": True},
        {"messages": [USER, ANSWER], "completion": "a", "label": True},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}
        | {"kto_tag": True},
        {"instruction": "q", "input": "", "output": "a", "kto_tag": True},
        {"query": "q", "response": "a", "rating": "thumbs_up"},
        {"prompt": "q", "completion": "a", "label": 1, "rating": 4.5},
    ],
)
def test_layouts_of_judged_answers_are_one(record: dict[str, Any]) -> None:
    assert formats.detect([record], {}) == "unpaired"
    assert read("unpaired", record) == Unpaired([USER], [ANSWER], True)


@pytest.mark.parametrize("field", VERDICTS)
@pytest.mark.parametrize(
    ("label", "means"),
    [
        *[(word, True) for word in (*GOOD, "Good ", 1, 1.0, "1", True)],
        *[(word, False) for word in (*BAD, "REJECTED", 0, -1, "0", False)],
    ],
)
def test_labels_of_every_kind(field: str, label: Any, means: bool) -> None:
    record = {"prompt": "q", "completion": "a", field: label}
    assert formats.detect([record], {}) == "unpaired"
    assert read("unpaired", record) == Unpaired([USER], [ANSWER], means)


def test_columns_are_mapped() -> None:
    record = {"asked": "q", "said": "a", "liked": "no"}
    columns = {"prompt": "asked", "completion": "said", "label": "liked"}
    assert formats.detect([record], columns) == "unpaired"
    assert read("unpaired", record, columns=columns) == Unpaired([USER], [ANSWER], False)


@pytest.mark.parametrize(
    ("record", "found", "hint"),
    [
        ({"prompt": "q", "completion": "a"}, "no field 'label'", "data.columns.label="),
        ({"prompt": "q", "label": True}, "no field 'completion'", "data.columns.completion="),
        ({"prompt": "q", "completion": "", "label": True}, "completion is empty", "remove"),
        (
            {"prompt": "q", "completion": [{**USER, "content": "r"}], "label": True},
            "ends with user",
            "is last",
        ),
        ({"prompt": "q", "completion": "a", "label": 3}, "'label' is 3, neither", "true or false"),
        ({"prompt": "q", "completion": "a", "label": float("nan")}, "nan, neither", "true or"),
        ({"prompt": "q", "completion": "a", "label": [1]}, "a list, neither", "data.columns.label"),
        (
            {"prompt": "q", "completion": "a", "label": True, "kto_tag": False},
            "'label' and 'kto_tag' say different things",
            "data.columns.kto_tag=",
        ),
        (
            {"messages": [USER, ANSWER], "completion": "b", "label": True},
            "'messages' ends with another answer than 'completion'",
            "data.columns.completion=",
        ),
    ],
)
def test_judged_answers_that_are_refused(record: dict[str, Any], found: str, hint: str) -> None:
    refused = read("unpaired", record)
    assert found in refused.found
    assert hint in refused.hint


LABELS = st.sampled_from([True, False, 0, 1, -1, "true", "no", "good", "spam", "", 2, 0.5, None])
BESIDE = st.dictionaries(
    st.sampled_from([*VERDICTS, "score", "source", "id", "labels", "scores"]), LABELS, max_size=4
)
#: Records of other formats, which a label beside them makes no judged answer unless it judges one.
OTHERS = [
    ("classification", {"text": "t", "label": "sum"}),
    ("classification", {"text": "t", "label": 1}),
    ("classification", {"text": "t", "label": True}),
    ("preference", {"prompt": "q", "chosen": "a", "rejected": "b"}),
    ("ranked", {"prompt": "q", "completions": ["a", "b"], "scores": [1, 2]}),
    ("text", {"text": "t"}),
    ("chat", {"messages": [USER, ANSWER]}),
    ("chat", {"messages": [USER, ANSWER, USER]}),
    ("prompt", {"prompt": "q", "completion": "a"}),
    ("alpaca", {"instruction": "q", "output": "a"}),
]


@pytest.mark.parametrize(("name", "record"), OTHERS)
@given(beside=BESIDE)
def test_records_of_other_formats_are_not_taken(
    name: str, record: dict[str, Any], beside: dict[str, Any]
) -> None:
    beside = {field: value for field, value in beside.items() if field not in record}
    found = formats.detect([record | beside], {})
    if name == "text" and "label" in beside:
        name = "classification"
    if found != "unpaired":
        assert found == name
        return
    assert name in ("chat", "prompt", "alpaca")
    first = next(beside[field] for field in VERDICTS if beside.get(field) not in (None, ""))
    assert first in (True, False, -1, "true", "no", "good")
    assert record.get("messages", [ANSWER])[-1] == ANSWER
