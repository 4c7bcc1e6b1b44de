"""Places of templates are filled in one go, and what a place names is there or is told."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.core.errors import ConfigError
from launcher.graders.errors import Ungraded
from launcher.graders.sample import Sample
from launcher.graders.template import Template

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


@pytest.mark.parametrize("text", ["no JSON", "NaN", '{"a": Infinity}', "[" * 100_000])
def test_an_answer_that_is_no_json_is_to_blame(text):
    with pytest.raises(Ungraded) as raised:
        filled("{{ sample.output_json.a }}", sample=Sample(text))
    assert raised.value.error.is_of_answer


def test_missing_fields_of_an_item():
    template = Template("{{ item.x }} {{ item.y.z }} {{ sample.output_json.q }} {{ item.n }}", "")
    assert list(template.missing({"x": 1, "y": {}})) == ["item.y.z", "item.n"]
