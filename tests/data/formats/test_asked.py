"""Records that only ask, as an objective reads them whose model answers."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.data.formats import BadRecord, Chat, OpenQuestion, Pair, Reader, detect

USER = {"role": "user", "content": "How many?"}
SAID = {"role": "assistant", "content": "Two."}
SYSTEM = {"role": "system", "content": "Count."}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}

ASKED: list[tuple[str, dict[str, Any], Any]] = [
    ("prompt", {"prompt": "How many?"}, "How many?"),
    ("prompt", {"question": "How many?", "answer": "2"}, "How many?"),
    ("prompt", {"prompt": "How many?", "completion": None}, "How many?"),
    ("prompt", {"prompt": [USER, SAID, USER], "solution": 2}, [USER, SAID, USER]),
    ("prompt", {"prompt": "How many?", "system": "Count."}, [SYSTEM, USER]),
    ("prompt", {"prompt": "How many?", "history": [["a", "b"]]}, 3),
    ("alpaca", {"instruction": "Add.", "input": "1 1", "output": ""}, "Add.\n\n1 1"),
    ("chat", {"messages": [USER]}, [USER]),
    ("chat", {"messages": [SYSTEM, USER, SAID, USER], "answer": 3}, [SYSTEM, USER, SAID, USER]),
    ("sharegpt", {"conversations": [{"from": "human", "value": "How many?"}]}, [USER]),
]


@pytest.mark.parametrize(("name", "record", "asked"), ASKED)
def test_a_record_without_an_answer_asks(name, record, asked):
    assert detect([record], {}, asks=True) == name
    read = Reader(name, {}, asks=True).read(record)
    assert not isinstance(read, BadRecord)
    example = read[0]
    assert isinstance(example, OpenQuestion)
    assert len(example.prompt) == 3 if asked == 3 else example.prompt == asked


@pytest.mark.parametrize(("name", "record", "asked"), ASKED)
def test_who_learns_from_answers_is_told_of_it_as_before(name, record, asked):
    read = Reader(name, {}).read(record)
    is_earlier = "messages" in record and len(record["messages"]) == 4
    assert isinstance(read, BadRecord) or is_earlier  # what was said before is an answer, too


def test_tools_and_variables_of_the_template_are_kept():
    record = {"messages": [USER], "tools": [TOOL], "chat_template_kwargs": {"x": 1}}
    example = Reader("chat", {}, asks=True).read(record)[0]
    assert (example.tools, dict(example.template_options)) == ([TOOL], {"x": 1})


def test_it_can_be_sent_to_a_process():
    sent = pickle.dumps(Reader("prompt", {"prompt": "q"}, asks=True))
    reader = pickle.loads(sent)  # noqa: S301 - of our own making
    assert reader.read({"q": "How many?"})[0] == OpenQuestion("How many?")


@pytest.mark.parametrize(
    "record",
    [{"prompt": [USER, SAID]}, {"prompt": 3}, {"prompt": [{"content": "no role"}]}],
)
def test_what_asks_nothing_is_refused(record):
    assert isinstance(Reader("prompt", {}, asks=True).read(record), BadRecord)


TEXT = st.text(min_size=1, max_size=20)
TURNS = st.lists(
    st.builds(
        lambda role, content: {"role": role, "content": content},
        st.sampled_from(["system", "user", "assistant"]),
        TEXT,
    ),
    max_size=5,
)
RECORDS = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(
            ("prompt", "question", "completion", "answer", "instruction", "output"), TEXT
        ),
        **dict.fromkeys(("messages", "conversations"), TURNS),
    },
)


@given(record=RECORDS, name=st.sampled_from(["prompt", "chat", "sharegpt", "alpaca"]))
def test_what_has_an_answer_is_read_as_by_every_objective(record, name):
    """Whatever is in a record, it is read or refused, and never both an answer and a question."""
    known, read = Reader(name, {}).read(record), Reader(name, {}, asks=True).read(record)
    if isinstance(read, BadRecord):
        assert isinstance(known, BadRecord)
    elif isinstance(read[0], OpenQuestion):
        ends = read[0].prompt
        assert isinstance(ends, str) or ends[-1]["role"] != "assistant"
    else:
        assert isinstance(read[0], Pair | Chat)
        assert read == known
