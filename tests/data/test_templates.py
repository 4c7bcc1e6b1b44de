"""What is learned of conversations of many shapes with the templates of many families."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from launcher.data.formats.base import BadRecord, Chat
from launcher.data.masking import CALLS, CONTENT, THOUGHTS, ChatOptions, ChatRenderer, Rendering
from support.templates import FAMILIES, tokenizer_of

Message = dict[str, Any]
Make = Callable[[str], Any]

#: Letters of nobody but the assistant, and of nobody but the others: no template writes them.
MINE, THEIRS = "ДЖЩЮ", "αβγδ"
#: Words that templates write or look for.
MARKERS = (
    *("<|im_end|>", "<|im_start|>", "</think>", "<think>", "<tool_response>", "</tool_response>"),
    *(
        "<|end|>",
        "[INST]",
        "[/INST]",
        "<|channel>",
        "user",
        "assistant",
        "/no_think",
        '"',
        "\\",
        "{",
    ),
)


@pytest.fixture(scope="session")
def make(tokenizer_folder: Path) -> Make:
    """The tokenizer of a family."""
    return lambda family: tokenizer_of(tokenizer_folder, family)


def call(name: str, **arguments: Any) -> Message:
    return {
        "role": "assistant",
        "tool_calls": [
            {
                "id": "call00001",
                "type": "function",
                "function": {"name": name, "arguments": arguments},
            }
        ],
    }


def result(text: str) -> Message:
    return {"role": "tool", "tool_call_id": "call00001", "name": "f", "content": text}


def says(role: str, text: str, **extra: Any) -> Message:
    return {"role": role, "content": text, **extra}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "find",
            "description": "αα",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
USER, AGAIN = says("user", "α βγ?"), says("user", "δ α!")
ANSWER, LATER = says("assistant", "Д Ж."), says("assistant", 'Щ "Ю"')
CALL = call("Ж", city="Д Ж", when={"day": 3, "open": True})
SHAPES: dict[str, Chat] = {
    "one question": Chat([USER, ANSWER]),
    "two questions": Chat([USER, ANSWER, AGAIN, LATER]),
    "a system message": Chat([says("system", "β γ."), USER, ANSWER, AGAIN, LATER]),
    "ends with the user": Chat([USER, ANSWER, AGAIN]),
    "an earlier turn of weight 0": Chat([USER, ANSWER, AGAIN, LATER], None, frozenset({1})),
    "the last turn of weight 0": Chat([USER, ANSWER, AGAIN, LATER], None, frozenset({3})),
    "an empty answer": Chat([USER, says("assistant", ""), AGAIN, LATER]),
    "an empty question": Chat([says("user", ""), ANSWER, AGAIN, LATER]),
    "a call": Chat([USER, CALL, result("γ δ"), ANSWER], TOOLS),
    "a call last": Chat([USER, CALL], TOOLS),
    "two results": Chat([USER, CALL, result("γ"), result("δ"), ANSWER, AGAIN, LATER], TOOLS),
    "calls without tools": Chat([USER, CALL, result("γ δ"), ANSWER]),
    "thoughts in a field": Chat(
        [USER, {**ANSWER, "reasoning_content": "Щ Щ"}, AGAIN, {**LATER, "reasoning_content": "Ю Ю"}]
    ),
    "thoughts in the content": Chat(
        [
            USER,
            says("assistant", "<think>\nЩ Щ\n</think>\n\nД Ж"),
            AGAIN,
            says("assistant", "<think>\nЮ Ю\n</think>\n\nЩ Д"),
        ]
    ),
    "thoughts before a call": Chat(
        [USER, {**CALL, "reasoning_content": "Щ Щ"}, result("γ"), ANSWER], TOOLS
    ),
}


def render(tokenizer: Any, chat: Chat, **options: Any) -> Rendering | BadRecord:
    try:
        return ChatRenderer(tokenizer, ChatOptions(**options)).render(chat)
    except BadRecord as error:
        return error


def spoken(message: Message, kind: str) -> str:
    """The letters of one kind in a message of the assistant's."""
    content = message.get("content") or ""
    thought, tag, rest = content.rpartition("</think>")
    calls = [made["function"] for made in message.get("tool_calls", ())]
    texts = {
        CONTENT: rest if tag else content,
        THOUGHTS: thought + message.get("reasoning_content", ""),
        CALLS: json.dumps(
            [[made["name"], made["arguments"]] for made in calls], ensure_ascii=False
        ),
    }
    return letters(texts[kind], MINE)


def letters(text: str, of: str) -> str:
    return "".join(letter for letter in text if letter in of)


def check(chat: Chat, found: Rendering, ends: tuple[str, ...]) -> None:
    """No span holds what others say; what the assistant says is in one or named; turns end."""
    learned = "".join(found.text[a:b] for a, b in found.spans)
    assert not letters(learned, THEIRS)
    named = {(number - 1, kind) for number, kind in found.left_out}
    expected = dict.fromkeys((CONTENT, THOUGHTS, CALLS), "")
    for i, message in enumerate(chat.messages):
        if message["role"] == "assistant" and i not in chat.context_only:
            for kind in expected:
                if (i, kind) in named:
                    assert spoken(message, kind)
                    continue
                expected[kind] += spoken(message, kind)
    whole = "".join(expected.values())
    assert sorted(letters(learned, MINE)) == sorted(whole) or named
    assert not any(learned.count(letter) < whole.count(letter) for letter in MINE)
    for a, b in found.spans:
        assert found.text[a:b].endswith(ends), found.text[a:b]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_turns_are_learned_whole_and_nothing_else(family: str, shape: str, make: Make) -> None:
    chat, known = SHAPES[shape], FAMILIES[family]
    found = render(make(family), chat)
    if isinstance(found, BadRecord):
        # Only what the template itself says no to may be refused.
        assert "the chat template refuses the conversation" in found.found
        assert known.alternates or not known.tools or shape == "an empty question"
        return
    check(chat, found, known.ends)
    calls = [i for i, message in enumerate(chat.messages) if message.get("tool_calls")]
    if not known.writes_calls:
        assert {(i + 1, CALLS) for i in calls} <= set(found.left_out)
    else:
        assert not any(kind in (CALLS, CONTENT) for _, kind in found.left_out)
    if shape == "thoughts in a field":
        assert ((4, THOUGHTS) in found.left_out) == (not known.writes_fields)
    # The last thought is written by all but those that cut thoughts off.
    if shape == "thoughts in the content" and family != "deepseek_r1":
        assert (4, THOUGHTS) not in found.left_out or family in ("gpt_oss", "gemma4")


TEXTS = st.lists(
    st.one_of(st.sampled_from(MARKERS), st.text(st.sampled_from("abz .\n"), max_size=5)), max_size=4
).map("".join)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("family", FAMILIES)
def test_whatever_people_write(family: str, data: st.DataObject, make: Make) -> None:
    # A letter of one's own first and last, and between them whatever stands in templates too.
    def text(letters: str) -> str:
        first, last = data.draw(st.sampled_from(letters)), data.draw(st.sampled_from(letters))
        return first + data.draw(TEXTS) + last

    messages = [says("system", text(THEIRS))] if data.draw(st.booleans()) else []
    for _ in range(data.draw(st.integers(1, 3))):
        messages += [says("user", text(THEIRS)), says("assistant", text(MINE))]
    found = render(make(family), Chat(messages))
    if isinstance(found, BadRecord):
        # gpt-oss refuses channels within contents; nothing else here is to be refused.
        assume("refuses" in found.found)
        return
    check(Chat(messages), found, FAMILIES[family].ends)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_user_who_says_what_the_assistant_says(family: str, make: Make) -> None:
    same = "Д Ж."
    chat = Chat([says(role, same) for role in ("user", "assistant") * 2])
    found = render(make(family), chat)
    assert isinstance(found, Rendering)
    assert [found.text[a:b].count(same) for a, b in found.spans] == [1, 1]
    outside = found.text[: found.spans[0][0]] + found.text[found.spans[0][1] : found.spans[1][0]]
    assert outside.count(same) == 2


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_learned_follows_the_prompt_that_asks_for_it(family: str, make: Make) -> None:
    """The text before a span is what generation begins with, up to a thought that it opens."""
    tokenizer = make(family)
    found = render(tokenizer, SHAPES["two questions"])
    assert isinstance(found, Rendering)
    for (begin, _), messages in zip(found.spans, ([USER], [USER, ANSWER, AGAIN]), strict=True):
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        opened = prompt.removesuffix("<think>\n").removesuffix("<|channel>thought\n<channel|>")
        assert found.text[:begin] in (prompt, opened)
