"""Places of templates are filled in one go, and what a place names is there or is told."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.config.schema import JudgeConfig
from launcher.core.errors import ConfigError
from launcher.graders.errors import Ungraded
from launcher.graders.grader import Grader, Setting
from launcher.graders.sample import Sample
from launcher.graders.template import MAX_PLACES, MAX_STEPS, Template
from launcher.graders.wire import from_wire

ITEM = {"x": "X", "n": 3, "deep": {"list": [{"a-b": True}, None]}, "dotted.name": "D", "2": "two"}
SAMPLE = Sample('{"a": {"b": [1, 2.5, "three"]}}', ({"function": {"name": "add"}},))


def filled(text: str, item=ITEM, sample=SAMPLE) -> str:
    return Template(text, "grader.input").fill(item, sample)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("", ""),
        ("{{item.x}}", "X"),
        ("<{{ item.x }}|{{item.n}}>", "<X|3>"),
        ("{{ item.deep.list[0].a-b }}", "true"),
        ("{{ item.deep.list.1 }}", "null"),
        ("{{ item.deep.list[-1] }}", "null"),
        ("""{{ item["dotted.name"] }}{{ item['x'] }}""", "DX"),
        ("{{ item.2 }}", "two"),
        ("{{ item.deep }}", '{"list": [{"a-b": true}, null]}'),
        ("{{ sample.output_text }}", SAMPLE.output_text),
        ("{{ sample.output_json.a.b[1] }}", "2.5"),
        ("{{ sample.output_json.a.b.2 }}", "three"),
        ("{{ sample.output_tools[0].function.name }}", "add"),
        ("{{ sample.output_tools }}", '[{"function": {"name": "add"}}]'),
        ("{ item.x } {{", "{ item.x } {{"),
        ("{{ {{ item.x }} }}", "{{ X }}"),
    ],
)
def test_places(text, expected):
    assert filled(text) == expected


def test_braces_that_are_never_closed_cost_little():
    text = "{{ x" * 60_000
    assert filled(text) == text


@given(st.text())
def test_values_are_not_templates(text):
    assert filled("{{ item.x }}|{{ sample.output_text }}", {"x": text}, Sample(text)) == (
        f"{text}|{text}"
    )


@given(st.recursive(st.none() | st.booleans() | st.integers(), lambda p: st.lists(p, max_size=3)))
def test_what_is_no_text_is_put_in_as_json(value):
    assert json.loads(filled("{{ item.v }}", {"v": value})) == value


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{{ itm.x }}", "unknown 'itm'"),
        ("{{ item }}", "names nothing"),
        ("{{ }}", "names nothing"),
        ("{{ item.x | upper }}", "names nothing"),
        ("{{ item.x() }}", "names nothing"),
        ("{{ sample.text }}", "no 'text'"),
        ("{{ sample.__class__ }}", "no '__class__'"),
    ],
)
def test_places_that_can_name_nothing_are_refused(text, found):
    with pytest.raises(ConfigError) as raised:
        Template(text, "grader.input")
    assert found in raised.value.problems[0].found
    assert raised.value.problems[0].hint


@pytest.mark.parametrize(
    ("text", "kind", "found"),
    [
        ("{{ item.y }}", "invalid_variable_error", "no 'y' in an object of x, n"),
        ("{{ item.x.y }}", "invalid_variable_error", "in a str"),
        ("{{ item.deep.list[2] }}", "invalid_variable_error", "a list of 2 has no [2]"),
        ("{{ item.deep.list.name }}", "invalid_variable_error", "in a list"),
        ("{{ sample.output_json.z }}", "sample_parse_error", "no 'z'"),
        ("{{ sample.output_tools[1] }}", "sample_parse_error", "has no [1]"),
    ],
)
def test_what_is_not_there_is_said(text, kind, found):
    with pytest.raises(Ungraded) as raised:
        filled(text)
    assert raised.value.error.kind == kind
    assert found in raised.value.error.message


def test_what_is_said_of_odd_items_can_be_written_to_files():
    with pytest.raises(Ungraded) as raised:
        filled("{{ item.y }}", {"\ud800": 1})
    assert raised.value.error.message.encode().endswith(b"in an object of ?")


@pytest.mark.parametrize("text", ["no JSON", "NaN", '{"a": Infinity}', "[" * 100_000])
def test_an_answer_that_is_no_json_is_to_blame(text):
    with pytest.raises(Ungraded) as raised:
        filled("{{ sample.output_json.a }}", sample=Sample(text))
    assert raised.value.error.is_of_answer


def judged(*texts: str) -> dict[str, Any]:
    messages = [{"role": "user", "content": text} for text in texts]
    return {"type": "score_model", "name": "g", "model": "m", "input": messages}


def made(form: dict[str, Any]) -> Grader:
    return from_wire(form, Setting(JudgeConfig(url="http://127.0.0.1:9/v1")))


def test_missing_fields_of_an_item():
    text = "{{ item.x }} {{ item.y.z }} {{ sample.output_json.q }} {{ item.n }}"
    assert made(judged(text)).missing({"x": 1, "y": {}}) == ["item.y.z", "item.n"]


def test_a_field_that_is_named_often_is_looked_up_once_in_an_item():
    looked: list[str] = []

    class Item(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            looked.append(key)
            return super().__getitem__(key)

    grader = made(judged('{{ item.x }}{{ item["x"] }}' * 100, "{{ item.x }}"))
    assert grader.missing(Item(x=1)) == []
    assert looked == ["x"]
    parts = {"a": judged("{{ item.x }}"), "b": judged("{{ item.x }}{{ item.y }}")}
    multi = made({"type": "multi", "name": "m", "graders": parts, "calculate_output": "a + b"})
    assert multi.missing(Item(x=1)) == ["item.y"]
    assert looked == ["x", "x"]


def test_more_places_than_any_grader_needs_are_refused_by_name():
    most, more = "{{ item.x }}" * MAX_PLACES, "{{ item.x }}" * 600
    assert made(judged(most)).missing({}) == ["item.x"]
    parts = {"a": judged(more), "b": judged(more)}
    multi = {"type": "multi", "name": "m", "graders": parts, "calculate_output": "a + b"}
    deep = "{{ item" + ".x" * (MAX_STEPS + 1) + " }}"
    for form, where, found in (
        (judged(most + "{{ item.y }}"), "grader.input[0].content", "more than 1,000 places"),
        (judged("", more, more), "grader.input[2].content", "more than 1,000 places"),
        (multi, "grader.graders", "more than 1,000 places"),
        (judged(deep), "grader.input[0].content", "leads on 33 times"),
    ):
        with pytest.raises(ConfigError) as raised:
            made(form)
        assert [problem.where for problem in raised.value.problems] == [where]
        assert found in raised.value.problems[0].found
        assert raised.value.problems[0].hint
