"""What the graders that only compute say of answers, and how grades are given."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.graders.grader import Grade, Grader
from launcher.graders.sample import Sample
from launcher.graders.wire import from_wire


def grader(kind: str, **members) -> Grader:
    return from_wire({"type": kind, "name": "g", **members})


def check(operation: str, text: str, reference: str) -> float | None:
    members = {"input": "{{ sample.output_text }}", "reference": "{{ item.r }}"}
    return (
        grader("string_check", operation=operation, **members).grade({"r": reference}, text).score
    )


@pytest.mark.parametrize(
    ("operation", "text", "reference", "score"),
    [
        ("eq", "Paris", "Paris", 1),
        ("eq", "Paris ", "Paris", 0),
        ("ne", "Paris", "Rome", 1),
        ("ne", "Paris", "Paris", 0),
        ("like", "It is Paris.", "Paris", 1),
        ("like", "It is paris.", "Paris", 0),
        ("like", "a%c", "%", 1),
        ("like", "abc", "a%c", 0),
        ("ilike", "It is PARIS.", "paris", 1),
        ("ilike", "STRASSE", "straße", 1),
    ],
)
def test_string_check(operation, text, reference, score):
    assert check(operation, text, reference) == score


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("So it is $1,234.50.", 1),
        ("1234.5", 1),
        ("1234.6", 1),
        ("1234.7", 0),
        ("1,234.5 of 7", 0),
        ("none", 0),
        ("", 0),
    ],
)
def test_numeric_match(text, score):
    made = grader("numeric_match", reference="{{ item.r }}", tolerance=0.1)
    assert made.grade({"r": "#### 1234.5"}, text).score == score


def test_numeric_match_relative_and_without_reference():
    made = grader("numeric_match", reference="{{ item.r }}", relative_tolerance=0.01)
    assert made.grade({"r": "1000"}, "1009").score == 1
    assert made.grade({"r": "1000"}, "1011").score == 0
    grade = made.grade({"r": "unknown"}, "3")
    assert (grade.score, grade.errors[0].kind) == (None, "invalid_variable_error")


def test_json_schema():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    made = grader("json_schema", schema=schema)
    assert made.grade({}, '{"n": 3}').score == 1
    misfit = made.grade({}, '{"n": "3"}')
    assert (misfit.score, misfit.metadata["misfit"]) == (0, "$.n: '3' is not of type 'integer'")
    assert "no JSON" in made.grade({}, "n = 3").metadata["misfit"]
    assert made.grade({}, "[" * 100_000).score == 0


def test_an_answer_to_blame_has_the_lowest_score_and_an_item_none():
    members = {"input": "{{ sample.output_json.a }}", "reference": "{{ item.r }}"}
    made = grader("string_check", operation="eq", **members)
    assert made.grade({"r": "1"}, '{"a": 1}') == Grade(1.0, seconds=pytest.approx(0, abs=60))
    blamed = made.grade({"r": "1"}, "text")
    assert (blamed.score, blamed.errors[0].kind) == (0.0, "sample_parse_error")
    unknown = made.grade({}, '{"a": 1}')
    assert (unknown.score, unknown.errors[0].kind) == (None, "invalid_variable_error")


def multi(formula: str) -> Grader:
    texts = {"input": "{{ sample.output_text }}", "reference": "{{ item.r }}"}
    one = {"type": "string_check", "name": "one", "operation": "eq", **texts}
    other = {"type": "numeric_match", "name": "other", "reference": "{{ item.n }}"}
    graders = {"same": one, "number": other}
    return grader("multi", graders=graders, calculate_output=formula)


def test_multi():
    grade = multi("0.25 * same + number").grade({"r": "x 3", "n": 3}, "x 3")
    assert grade.score == 1.25
    assert grade.sub_scores == {"same": 1, "number": 1}
    assert grade.errors == ()


def test_a_formula_without_a_value_and_one_that_lacks_a_score():
    grade = multi("1 / same").grade({"r": "y", "n": 3}, "x 3")
    assert (grade.score, grade.errors[0].kind) == (None, "formula_parse_error")
    grade = multi("same + number").grade({"r": "y", "n": "none"}, "x 3")
    assert grade.score is None
    assert grade.errors[0].message.startswith("number: no number")
    assert multi("same").grade({"r": "y", "n": "none"}, "y").score == 1


@given(st.lists(st.integers(0, 9), max_size=20))
def test_grades_are_in_the_order_of_the_pairs(numbers):
    pairs = [({"r": str(n), "n": n}, Sample("3")) for n in numbers]
    grades = multi("same + 2 * number").grade_all(pairs)
    assert [grade.score for grade in grades] == [3.0 * (n == 3) for n in numbers]


def test_check_finds_fields_that_items_lack_before_anything_is_graded():
    made = multi("same + number")
    items = [("d.jsonl:1", {"r": 1, "n": 2}), ("d.jsonl:2", {"r": 1}), ("d.jsonl:3", {})]
    problems = list(made.check(items))
    assert [problem.where for problem in problems] == ["d.jsonl:3", "d.jsonl:2", "d.jsonl:3"]
    assert "item.n" in problems[1].found
    assert problems[1].hint == "it has r: mend the template, or the data"
