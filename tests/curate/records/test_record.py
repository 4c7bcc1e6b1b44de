"""What a record becomes for the rules, and which records count as the same."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from launcher.curate.records.marks import MARKS
from launcher.curate.records.record import digest, identity, loose, make
from launcher.data.formats.base import Chat, Labelled, OpenQuestion, Pair, Preference, Text


def said(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


def chat(*turns: tuple[str, object]) -> Chat:
    return Chat([said(role, content) for role, content in turns])


def item(example, line: int = 1):
    return make(example, file=0, line=line)


def test_a_conversation_is_asked_up_to_its_last_answer():
    made = item(
        chat(
            ("system", "Be brief."),
            ("user", "a"),
            ("assistant", "b"),
            ("user", [{"type": "text", "text": "c"}]),
            ("assistant", "d"),
        )
    )
    assert (made.prompt, made.answer, made.system) == ("a\nb\nc", "d", "Be brief.")
    assert made.text == "a\nb\nc\nd"
    assert made.answers == ("b", "d")
    assert made.roles == ["system", "user", "assistant", "user", "assistant"]


def test_turns_that_are_context_only_are_no_answers():
    turns = [said("user", "a"), said("assistant", "b"), said("user", "c"), said("assistant", "d")]
    assert item(Chat(turns, None, frozenset({1}))).answers == ("d",)


def test_a_tool_call_is_part_of_what_is_said():
    call = {"type": "function", "id": "1", "function": {"name": "add", "arguments": {"a": 1}}}
    turns = [said("user", "a"), {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert '"add"' in item(Chat(turns)).answer


def test_the_label_is_no_part_of_the_text():
    made = item(Labelled("turn it up", "volume"))
    assert (made.text, made.label, made.answer) == ("turn it up", "volume", "volume")


def test_case_and_white_space_do_not_make_another_record():
    one, other = item(Pair("What is  it?", "A pen")), item(Pair("what is it? ", "a\npen"))
    assert identity(one) == identity(other)


def test_the_same_question_with_another_answer():
    one, other = (identity(item(Pair("What?", answer))) for answer in ("a", "b"))
    assert one[1] == other[1]
    assert one[0] != other[0]
    assert one[2] != other[2]


def test_a_system_message_makes_another_question():
    alone = chat(("user", "hi"), ("assistant", "ho"))
    told = chat(("system", "Be rude."), ("user", "hi"), ("assistant", "ho"))
    assert identity(item(alone))[1] != identity(item(told))[1]


def test_a_preference_and_its_reverse_contradict_each_other():
    def prefer(better: str, worse: str) -> Preference:
        answers = [said("assistant", better)], [said("assistant", worse)]
        return Preference([said("user", "hi")], *answers)

    one, reverse = identity(item(prefer("a", "b"))), identity(item(prefer("b", "a")))
    assert one[1] == reverse[1]
    assert one[2] != reverse[2]
    assert one[1] != identity(item(prefer("a", "c")))[1]


def test_documents_have_no_question_in_common():
    one, other = identity(item(Text("a b"))), identity(item(Text("a c")))
    assert one[1] != other[1]


def test_all_texts_of_a_record_without_a_format():
    made = loose({"question": "why", "options": ["a", {"text": "b"}], "n": 3}, file=0, line=2)
    assert made.text == "why\na\nb"


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_texts_do_not_flow_into_each_other(left, right):
    assert (digest(*left) == digest(*right)) == (left == right)


def test_nobody_needs_to_have_answered_what_the_model_is_asked():
    turns = [said("system", "Be brief."), said("user", "a"), said("assistant", "b")]
    made = item(OpenQuestion([*turns, said("user", "c")]))
    assert (made.prompt, made.answer, made.system) == ("a\nb\nc", "", "Be brief.")
    assert item(OpenQuestion("a")).roles == ["user"]
    assert [name for name, mark in MARKS.items() if mark(made)] == []
    assert MARKS["unbalanced_turns"](item(OpenQuestion([*turns, *turns[1:2], *turns[1:2]])))
