"""The check of files of questions, which a model answers and a grader rewards."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.data.formats import BadRecord, OpenQuestion, Reader
from launcher.graders.wire import from_wire
from launcher.record_fields import FIELDS
from launcher.serve.files import validation
from launcher.serve.files.questions import questions
from launcher.serve.files.validation import FileFault
from support.draws import examples
from support.openai_turns import ANSWER, TOOL, TURNS, USER, VALUES

WORD = {"type": "string_check", "name": "word", "input": "{{ sample.output_text }}"}
WORD |= {"reference": "{{ item.answer.text }}", "operation": "eq"}
LONG = {"type": "python", "name": "long", "source": "def grade(sample, item): return 1"}
MULTI = {"type": "multi", "name": "both", "graders": {"a": WORD, "b": LONG}}
MULTI |= {"calculate_output": "a + b"}
KIND = questions(from_wire(MULTI).missing)
HELD = {"answer": {"text": "7"}}


def fault_of(example: object) -> str:
    return validation.fault_of(json.dumps(example).encode(), KIND)


@pytest.mark.parametrize(
    "good",
    [
        {"messages": [USER], **HELD},
        {"messages": [{"role": "developer", "content": "Be short."}, USER, ANSWER, USER], **HELD},
        {"messages": [USER], "tools": [TOOL], **HELD},
        {"messages": [USER], "label": False, "weight": "x", "reasoning": "y", **HELD},
    ],
)
def test_good_ones(good: dict[str, Any]) -> None:
    assert fault_of(good) == ""
    assert isinstance(Reader("question", {}, asks=True).read(good)[0], OpenQuestion)


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        ({**HELD}, 'has no list "messages".'),
        ({"messages": [], **HELD}, 'has no list "messages".'),
        ({"messages": [USER, ANSWER], **HELD}, 'the method "supervised" learns from'),
        ({"input": {}, "preferred_output": []}, 'the method "dpo" learns from'),
        ({"messages": [USER, {"role": "system", "content": "x"}], **HELD}, "from system"),
        ({"messages": [{"role": "user"}], **HELD}, "is wrong at message 1"),
        ({"messages": [USER], "tools": 7, **HELD}, '"tools" that are no list'),
        ({"messages": [USER]}, 'lacks "item.answer.text", which the grader reads.'),
        ({"messages": [USER], "answer": "7"}, 'lacks "item.answer.text"'),
    ],
)
def test_bad_ones(bad: dict[str, Any], found: str) -> None:
    assert found in fault_of(bad)


FIELD_NAMES = sorted({name for field in FIELDS for name in field.names} - {"messages", "tools"})


@given(
    turns=st.lists(TURNS, min_size=1, max_size=4),
    beside=st.dictionaries(st.sampled_from(FIELD_NAMES), VALUES, max_size=3),
)
@settings(max_examples=examples(200))
def test_what_passes_is_read_and_nothing_else_stops_a_run(turns: Any, beside: Any) -> None:
    record = {**beside, "messages": turns, **HELD}
    read = Reader("question", {}, asks=True).read(record)
    if fault_of(record) == "":
        assert not isinstance(read, BadRecord), (record, read)


def test_faults_are_told_at_once_with_their_lines(tmp_path: Path) -> None:
    good = json.dumps({"messages": [USER], **HELD})
    lines = [good, "", "{", json.dumps({"messages": [USER]}), *["[]"] * 7]
    content = io.BytesIO("\n".join(lines).encode())
    with pytest.raises(FileFault) as caught:
        validation.keep(content, tmp_path / "a", "training", KIND, least=1, line_bytes=1 << 20)
    said = str(caught.value)
    assert "Example 2 (line 3) is not valid JSON." in said
    assert 'Example 3 (line 4) lacks "item.answer.text", which the grader reads.' in said
    assert said.count("is not a JSON object") == validation.MOST_FAULTS - 2
    assert said.endswith(" And 4 more.")
    assert not list(tmp_path.iterdir())
