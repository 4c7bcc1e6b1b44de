"""Wire forms are those of OpenAI's API; what is wrong with one is said by name, all at once."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types import graders as api

from launcher.core.errors import ConfigError
from launcher.graders.members import MAX_TEXT
from launcher.graders.wire import GRADERS, from_file, from_wire

CHECK = {
    "type": "string_check",
    "name": "same",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}
LIKE = {
    "type": "text_similarity",
    "name": "alike",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "evaluation_metric": "rouge_l",
}
MULTI = {
    "type": "multi",
    "name": "both",
    "graders": {"same": CHECK, "alike": LIKE},
    "calculate_output": "0.5 * same + 0.5 * alike",
}
FORMS = [
    (api.StringCheckGrader, CHECK),
    (api.TextSimilarityGrader, LIKE),
    (api.MultiGrader, MULTI),
    (api.MultiGrader, MULTI | {"graders": CHECK, "calculate_output": "same"}),
]


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_a_grader_of_the_api_is_ours_and_back(kind, form):
    sent = kind.construct(**form).to_dict()
    ours = from_wire(sent).to_wire()
    assert ours == form
    assert kind.construct(**ours).to_dict() == sent


@pytest.mark.parametrize(("kind", "form"), [pair for pair in FORMS if "graders" not in pair[1]])
def test_the_api_validates_what_we_write(kind, form):
    assert kind.model_validate(from_wire(form).to_wire(), strict=True).name == form["name"]


def test_a_file_has_the_same_members(tmp_path):
    path = tmp_path / "g.yaml"
    path.write_text(
        "type: string_check\nname: same\ninput: '{{ sample.output_text }}'\n"
        "reference: '{{ item.answer }}'\noperation: eq\n"
    )
    assert from_file(path).to_wire() == CHECK


@pytest.mark.parametrize(
    ("form", "wheres", "found"),
    [
        ({}, ["type"], "no object with a type"),
        ("text", ["type"], "no object with a type"),
        (CHECK | {"type": "string_chek"}, ["type"], "no grader 'string_chek'"),
        (CHECK | {"type": ["string_check"]}, ["type"], "no grader"),
        (CHECK | {"operator": "eq"}, ["operator"], "no such member"),
        (CHECK | {"operation": "equals"}, ["operation"], "'equals' is none of them"),
        (CHECK | {"operation": ["eq"]}, ["operation"], "is none of them"),
        (CHECK | {"input": 3}, ["input"], "3 is no text"),
        ({**CHECK, "name": "", "input": "{{ itm.x }}"}, ["input", "name"], "unknown 'itm'"),
        ({k: v for k, v in CHECK.items() if k != "reference"}, ["reference"], "is missing"),
        (CHECK | {"name": "n" * (MAX_TEXT + 1)}, [""], "characters"),
        (CHECK | {"input": [[[]]] * 10_001}, [""], "too many values"),
        (MULTI | {"calculate_output": "same + other"}, ["calculate_output"], "'other'"),
        (MULTI | {"graders": {}}, ["calculate_output", "graders"], "unknown name"),
        (MULTI | {"graders": {"same": MULTI, "alike": LIKE}}, None, "in a multi grader"),
        (MULTI | {"graders": {"a-b": CHECK}}, None, "cannot stand in a formula"),
        (MULTI | {"graders": {"same": CHECK | {"x": 1}}}, ["graders.same.x"], "no such member"),
    ],
)
def test_what_is_wrong_is_said_by_name(form, wheres, found):
    with pytest.raises(ConfigError) as raised:
        from_wire(form)
    problems = raised.value.problems
    assert any(found in problem.found for problem in problems)
    assert all(problem.hint for problem in problems)
    if wheres is not None:
        assert [p.where.removeprefix("grader").lstrip(".") for p in problems] == wheres


def test_deep_forms_are_refused():
    form: dict = {}
    for _ in range(100):
        form = {"type": "multi", "graders": {"a": form}}
    with pytest.raises(ConfigError, match="nested deeper"):
        from_wire(form)


def test_half_characters_are_refused():
    for form in (CHECK | {"name": "\ud800"}, CHECK | {"\ud800": 1}):
        with pytest.raises(ConfigError, match="half a character") as raised:
            from_wire(form)
        assert str(raised.value).isascii()


@pytest.mark.parametrize("text", ["a: [", "\x00", "a: 2020-01-01", "[" * 5000])
def test_a_file_that_is_none_is_refused(text, tmp_path):
    path = tmp_path / "g.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="g.yaml"):
        from_file(path)


def test_a_yaml_file_that_grows_by_references_is_refused(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9)]
    path = tmp_path / "g.yaml"
    path.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="too many values"):
        from_file(path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda part: (
        st.lists(part, max_size=3)
        | st.dictionaries(st.text(max_size=4) | st.integers(), part, max_size=3)
    ),
    max_leaves=6,
)
_MEMBERS = (
    *("name", "input", "reference", "operation", "evaluation_metric", "tolerance", "schema"),
    *("source", "image_tag", "command", "files", "file", "model", "range", "sampling_params"),
    *("labels", "passing_labels", "prompt", "graders", "calculate_output", "other"),
)


@given(st.sampled_from(sorted(GRADERS)), st.dictionaries(st.sampled_from(_MEMBERS), _JSON))
@settings(max_examples=300)
def test_any_members_make_a_grader_or_an_error_that_helps(kind, members):
    try:
        made = from_wire({"name": "g", **members, "type": kind})
    except ConfigError as error:
        problems = [problem for problem in error.problems if not (problem.where and problem.hint)]
    else:
        problems = [] if made.to_wire()["type"] == kind else [made]
    assert problems == []
