"""Calls of tools in answers, in the forms of several families' templates."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.data.chat.calls import Call, CallForm

HERMES = CallForm("<tool_call>", "</tool_call>", "arguments")
LLAMA = CallForm("", "", "parameters")
LIST = CallForm("[", "]", "arguments")
F, G = Call("f", '{"a": "é"}'), Call("g", "{}")


@pytest.mark.parametrize(
    ("form", "answer", "text", "calls"),
    [
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a": "é"}}\n</tool_call>', "", [F]),
        (
            HERMES,
            'Sure.\n<tool_call>{"name": "f", "arguments": {"a": "é"}}</tool_call>\n'
            '<tool_call>\n{"name": "g", "arguments": {}}\n</tool_call>\n',
            "Sure.",
            [F, G],
        ),
        (LLAMA, ' {"name": "f", "parameters": {"a": "é"}}', "", [F]),
        (LIST, 'See [1]: [{"name": "g", "arguments": {}}]', "See [1]:", [G]),
        (
            LIST,
            '[{"name": "f", "arguments": {"a": "é"}}, {"name": "g", "arguments": "{}"}]',
            "",
            [F, G],
        ),
    ],
)
def test_calls_are_read(form: CallForm, answer: str, text: str, calls: list[Call]) -> None:
    assert form.read(answer, {"f", "g"}) == (text, calls)


@pytest.mark.parametrize(
    ("form", "answer"),
    [
        (HERMES, "Sure."),
        (HERMES, ""),
        (HERMES, '<tool_call>\n{"name": "f", "arguments": {"a"'),
        (HERMES, '<tool_call>{"name": "f", "arguments": {}}</tool_call> and more'),
        (HERMES, '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
        (HERMES, '<tool_call>{"name": "f"}</tool_call>'),
        (HERMES, '<tool_call>{"name": ["f"], "arguments": {}}</tool_call>'),
        (HERMES, '{"name": "f", "arguments": {}}'),
        (LLAMA, 'It is {"name": "f", "parameters": {}}'),
        (LLAMA, '{"name": "f", "parameters": {}} {"a": 1}'),
    ],
)
def test_what_is_no_call_stays_text(form: CallForm, answer: str) -> None:
    assert form.read(answer, {"f"}) == (answer, [])


@given(
    st.sampled_from([HERMES, LLAMA, LIST]),
    st.lists(
        st.sampled_from(
            ["<tool", "_call>", "</tool_call>", '{"name": "f", ', '"arguments": {}}', "[", " ", "a"]
        ),
        max_size=12,
    ),
)
def test_what_is_certain_stays_in_the_text(form: CallForm, pieces: list[str]) -> None:
    whole = "".join(pieces)
    text, _ = form.read(whole, {"f"})
    sent = 0
    for end in range(len(pieces) + 1):
        certain = form.certain("".join(pieces[:end]))
        assert text.startswith(whole[:certain])
        sent = max(sent, certain)
    if form is HERMES and "<" not in whole:
        assert sent == len(whole.rstrip())


@pytest.mark.parametrize(
    "arguments",
    [
        '{"a": 1e999, "b": 0.10000000000000000001}',
        '{"a":12345678901234567890123,"b":[1.50, {"arguments": 2}]}',
        '{"\\u0061": "\\u00e9"}',
        "[1.0]",
    ],
)
def test_arguments_are_told_as_they_were_said(arguments: str) -> None:
    for said in (
        f'{{"name": "f", "arguments": {arguments}}}',
        f'{{ "arguments" :\n{arguments} , "name":"f" }}',
        f'{{"arguments": {{}}, "name": "f", "arguments": {arguments}}}',
    ):
        assert HERMES.read(f"<tool_call>{said}</tool_call>", {"f"}) == ("", [Call("f", arguments)])
