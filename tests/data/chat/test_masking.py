"""Which part of a conversation is learned, for templates in the manner of several families."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.core.errors import ConfigError
from launcher.data.chat.masking import (
    ChatOptions,
    ChatRenderer,
    LeftOut,
    kinds_as_bits,
    kinds_of_bits,
    told,
)
from launcher.data.chat.provenance import CALLS, CONTENT, NAMES, THOUGHTS
from launcher.data.formats import BadRecord, Chat
from launcher.data.formats.chat import ChatFormat
from launcher.data.prepare.encoding import ExampleEncoder
from support import chats

Make = Callable[..., Any]


def learned(tokenizer: Any, record: dict[str, Any], **options: Any) -> list[str]:
    """The spans of text that are learned."""
    renderer = ChatRenderer(tokenizer, ChatOptions(**options))
    text, spans, *_ = renderer.render(ChatFormat().read(record))
    return [text[begin:end] for begin, end in spans]


FAMILIES = {
    "chatml": (chats.CHATML, "<|im_end|>"),
    "chatml-tagged": (chats.CHATML_TAGGED, "<|im_end|>"),
    "tagged-short": (chats.TAGGED_SHORT, "<|im_end|>"),
    "llama3": (chats.LLAMA3, "<|eot|>"),
    "gemma": (chats.GEMMA, "<end_of_turn>"),
    "mistral": (chats.MISTRAL, "</s>"),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_answers_and_their_end_of_turn_are_learned(family: str, make_tokenizer: Make) -> None:
    template, stop = FAMILIES[family]
    space = " " if family == "mistral" else ""
    record = chats.chat("one?", "eins", "two?", "zwei")
    assert learned(make_tokenizer(template), record) == [
        f"{space}eins{stop}",
        f"{space}zwei{stop}",
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_the_spans_are_the_targets(family: str, make_tokenizer: Make) -> None:
    template, stop = FAMILIES[family]
    tokenizer = make_tokenizer(template)
    record = chats.chat("Wieviel?", "äöü 🙂 日本", "two?", "zwei 🙂")
    (item,) = ExampleEncoder(tokenizer).encode([ChatFormat().read(record)])
    ((tokens, targets, *_),) = item.pieces
    assert tokenizer.decode(tokens[targets == 1]).replace(" ", "") == f"äöü🙂日本{stop}zwei🙂{stop}"
    whole = tokenizer.apply_chat_template(record["messages"], tokenize=True, return_dict=False)
    assert tokens.tolist() == whole


def test_qwen3_finds_earlier_turns_that_lose_their_thought(make_tokenizer: Make) -> None:
    record = chats.chat("one?", "eins", "two?", "zwei")
    record["messages"][1]["reasoning_content"] = "one is one"
    record["messages"][3]["reasoning_content"] = "two is two"
    assert learned(make_tokenizer(chats.QWEN3), record) == [
        "eins<|im_end|>",
        "<think>\ntwo is two\n</think>\n\nzwei<|im_end|>",
    ]


def test_a_generation_prompt_that_opens_a_thought(make_tokenizer: Make) -> None:
    record = chats.chat("one?", "eins", "two?", "zwei")
    expected = ["eins<|im_end|>", "zwei<|im_end|>"]
    assert learned(make_tokenizer(chats.OPEN_THOUGHT), record) == expected


def test_weight_zero_is_not_learned(make_tokenizer: Make) -> None:
    record = chats.chat("one?", "eins", "two?", "zwei")
    record["messages"][1]["weight"] = 0
    for template in (chats.CHATML, chats.CHATML_TAGGED, chats.TAGGED_SHORT):
        for system in (None, "Be kind."):
            spans = learned(make_tokenizer(template), record, system=system)
            assert spans == ["zwei<|im_end|>"]


def test_system_message_is_put_before_records_without_one(make_tokenizer: Make) -> None:
    renderer = ChatRenderer(make_tokenizer(chats.CHATML), ChatOptions(system="Be kind."))
    text, *_ = renderer.render(ChatFormat().read(chats.chat("one?", "eins")))
    assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>")
    own = {"messages": [{"role": "system", "content": "Own."}, *chats.chat("a", "b")["messages"]]}
    text, *_ = renderer.render(ChatFormat().read(own))
    assert "Be kind." not in text


@pytest.mark.parametrize("template", [chats.CHATML, chats.CHATML_TAGGED, chats.LLAMA3])
def test_assistant_that_speaks_first(template: str, make_tokenizer: Make) -> None:
    record = {
        "messages": [{"role": "assistant", "content": "hi"}, {"role": "user", "content": "yo"}]
    }
    (span,) = learned(make_tokenizer(template), record)
    assert span.startswith("hi<|")


def test_tools_and_tool_calls_reach_the_template(make_tokenizer: Make) -> None:
    template = (
        "{% for t in tools or [] %}{{ t['function']['name'] + '\n' }}{% endfor %}"
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{{ m['content'] or '' }}"
        "{% for c in m['tool_calls'] or [] %}{{ c['function']['arguments']['x'] }}{% endfor %}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": "call-me"}'}}
    record = {
        "messages": [
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "done"},
            {"role": "assistant", "content": "ok"},
        ],
        "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}],
    }
    text, spans, *_ = ChatRenderer(make_tokenizer(template)).render(ChatFormat().read(record))
    assert text.startswith("f\n")
    assert [text[a:b] for a, b in spans] == ["call-me<|im_end|>", "ok<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "roles", "reason"),
    [
        (chats.GEMMA, ("system", "user", "assistant"), "System role not supported"),
        (chats.GEMMA, ("user", "user", "assistant"), "must alternate"),
        (chats.MISTRAL, ("tool", "assistant"), "Only user and assistant"),
    ],
)
def test_roles_that_the_template_refuses(
    template: str, roles: tuple[str, ...], reason: str, make_tokenizer: Make
) -> None:
    chat = Chat([{"role": role, "content": "x"} for role in roles])
    with pytest.raises(BadRecord) as caught:
        ChatRenderer(make_tokenizer(template)).render(chat)
    assert reason in caught.value.found
    assert ", ".join(roles) in caught.value.found
    assert "model.chat_template" in caught.value.hint


def test_a_template_that_fails_is_no_crash(make_tokenizer: Make) -> None:
    with pytest.raises(BadRecord) as caught:
        learned(make_tokenizer("{{ messages[0]['content'] + 1 }}"), chats.chat("a", "b"))
    assert "TypeError" in caught.value.found


def test_a_turn_that_cannot_be_told_apart_is_refused(make_tokenizer: Make) -> None:
    # Each rendering ends with the number of messages, and nothing marks the end of a turn.
    template = "{% for m in messages %}{{ loop.revindex }}{{ m['content'] }}{% endfor %}"
    with pytest.raises(BadRecord) as caught:
        learned(make_tokenizer(template), chats.chat("a", "b", "c", "d"))
    assert "message 2 differently when others follow" in caught.value.found
    assert "generation" in caught.value.hint


def test_a_mark_around_what_others_say_is_not_believed(make_tokenizer: Make) -> None:
    tokenizer = make_tokenizer(
        "{% generation %}{% for m in messages %}{{ m['content'] }}{% endfor %}{% endgeneration %}"
    )
    assert learned(tokenizer, chats.chat("one?", "eins")) == ["eins"]
    with pytest.raises(BadRecord) as caught:
        learned(tokenizer, chats.chat("one?", "eins", "two?", "zwei"))
    assert "puts what message 3 (user) says into what the model is to learn" in caught.value.found


CALL = {"type": "function", "function": {"name": "find", "arguments": {"x": "a", "ok": True}}}


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("c.function.name ~ c.function.arguments", 'find{"x": "a", "ok": true}'),
        ("c.function.name + c.function.arguments", 'find{"x": "a", "ok": true}'),
        ("c.function.arguments | tojson", '{"x": "a", "ok": true}'),
        ("c.function.arguments.x", "a"),
        (
            "(tools | selectattr('function.name', 'eq', c.function.name) | first).function.d"
            " ~ c.function.arguments.x",
            "ita",
        ),
        ("c.function.name | e ~ (c.function.arguments.x | e)", "finda"),
    ],
)
def test_calls_are_written_in_any_way(written: str, expected: str, make_tokenizer: Make) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.tool_calls %}"
        "{% for c in m.tool_calls %}{{ WRITTEN }}{% endfor %}{% else %}{{ m.content | e }}"
        "{% endif %}{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ).replace("WRITTEN", written)
    messages = [
        {"role": "user", "content": "a < b & c?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "<done>"},
        {"role": "assistant", "content": "it's <b>"},
    ]
    tools = [{"type": "function", "function": {"name": "find", "d": "it"}}]
    spans = learned(make_tokenizer(template), {"messages": messages, "tools": tools})
    assert spans == [f"{expected}<|im_end|>", "it&#39;s &lt;b&gt;<|im_end|>"]


def test_no_chat_template(make_tokenizer: Make) -> None:
    with pytest.raises(ConfigError) as caught:
        ExampleEncoder(make_tokenizer(None)).encode([ChatFormat().read(chats.chat("a", "b"))])
    assert caught.value.problems[0].where == "model.chat_template"
    assert "data=text" in caught.value.problems[0].hint


WORDS = st.text(st.sampled_from("ab ?\n🙂é<|"), min_size=1, max_size=12).filter(str.strip)


@pytest.mark.thorough
@settings(max_examples=60)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3), st.booleans())
def test_prefixes_and_tags_agree(
    make_tokenizer: Make, turns: list[tuple[str, str]], system: bool
) -> None:
    chat = ChatFormat().read(chats.chat(*(text for turn in turns for text in turn)))
    rendered = [
        ChatRenderer(
            make_tokenizer(template), ChatOptions(system="Be kind." if system else None)
        ).render(chat)
        for template in (chats.CHATML, chats.CHATML_TAGGED, chats.TAGGED_SHORT)
    ]
    assert rendered[0] == rendered[1] == rendered[2]
    text, spans, *_ = rendered[0]
    assert [text[a:b] for a, b in spans] == [f"{answer}<|im_end|>" for _, answer in turns]


@pytest.mark.parametrize("answer", ["zwei", "zwei\n", "zwei \n\n"])
def test_the_one_end_of_a_conversation_is_learned_behind_any_white_space(
    answer: str, make_tokenizer: Make
) -> None:
    template = (
        "{% for m in messages %}\n{{ 'A' if m.role == 'assistant' else 'Q' }}: {{ m.content }}"
        "{% endfor %}{% if add_generation_prompt %}\nA:{% else %}{{ eos_token }}{% endif %}"
    )
    record = chats.chat("one?", "eins", "two?", answer)
    record["messages"][1]["weight"] = 0  # so that the turns are looked for one by one
    (last,) = learned(make_tokenizer(template, "</s>"), record)
    assert last == f" {answer}</s>"


CHATML_TURNS = chats.CHATML.partition("{% if add_generation_prompt")[0]
#: Every turn of these begins before anybody speaks: behind an answer stands the next one's opening.
UNASKED = {
    "chatml": CHATML_TURNS + "{{ '<|im_start|>assistant\n' }}",
    "with a system turn of its own": "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nHelp.<|im_end|>\n' }}{% endif %}"
    + CHATML_TURNS
    + "{{ '<|im_start|>assistant\n' }}",
    "a thought is opened": CHATML_TURNS + "{{ '<|im_start|>assistant\n<think>\n' }}",
    "behind an answer only": CHATML_TURNS
    + "{% if messages[-1].role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% elif add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    "the user's turn": "{{ '<|im_start|>user\n' }}{% for m in messages %}{{ m.content + "
    "'<|im_end|>\n<|im_start|>' + ('assistant' if m.role == 'user' else 'user') + '\n' }}"
    "{% endfor %}",
    "a token for each role": "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + "
    "'<|im_end|>' }}{% endfor %}{{ '<|assistant|>' }}",
    "words for each role": "{% for m in messages %}{{ '### ' + m.role + ':\n' + m.content }}"
    "{{ '<|im_end|>' if m.role == 'assistant' }}{{ '\n\n' }}{% endfor %}{{ '### assistant:\n' }}",
    "marked, opening and all": "{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>\n<|im_start|>user\n' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|im_end|>\n<|im_start|>assistant\n' }}{% endif %}{% endfor %}",
}


@pytest.mark.parametrize("unasked", UNASKED)
def test_the_opening_of_a_turn_that_is_not_there_is_not_learned(
    unasked: str, make_tokenizer: Make
) -> None:
    tokenizer = make_tokenizer(UNASKED[unasked])
    one, two = chats.chat("one?", "eins"), chats.chat("one?", "eins", "two?", "zwei")
    assert learned(tokenizer, one) == ["eins<|im_end|>"]
    assert learned(tokenizer, two) == ["eins<|im_end|>", "zwei<|im_end|>"]
    text = ChatRenderer(tokenizer).render(ChatFormat().read(two)).text
    assert text.rstrip().endswith("zwei<|im_end|>")
    # An empty answer ends, too; and the next one may be the assistant's again.
    assert learned(tokenizer, chats.chat("one?", "", "two?", "zwei")) == [
        "<|im_end|>",
        "zwei<|im_end|>",
    ]
    again = {"messages": [*one["messages"], {"role": "assistant", "content": "zwei"}]}
    assert learned(tokenizer, again) == ["eins<|im_end|>", "zwei<|im_end|>"]


def test_an_opening_is_known_whatever_a_template_asks_of_conversations(
    make_tokenizer: Make,
) -> None:
    template = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system message') }}{% endif %}"
        "{% if messages[-1].role != 'assistant' and not add_generation_prompt %}"
        "{{ raise_exception('no answer') }}{% endif %}"
    )
    tokenizer = make_tokenizer(template + UNASKED["chatml"])
    record = chats.chat("one?", "eins", "two?", "zwei")
    expected = ["eins<|im_end|>", "zwei<|im_end|>"]
    assert learned(tokenizer, record, system="Be kind.") == expected


def test_an_opening_that_ends_the_turn_before_is_not_put_behind_one_unasked(
    make_tokenizer: Make,
) -> None:
    turns = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}{% endfor %}"
    tokenizer = copy.deepcopy(make_tokenizer(turns + "<|assistant|>"))
    tokenizer.add_tokens(["<|user|>", "<|assistant|>"], special_tokens=True)
    two = chats.chat("one?", "eins", "two?", "zwei")
    assert learned(tokenizer, two) == ["eins<|user|>", "zwei<|user|>"]
    # Behind nothing but another answer the model would answer again.
    again = {"messages": [*chats.chat("one?", "eins")["messages"], two["messages"][3]]}
    assert learned(tokenizer, again) == ["eins", "zwei<|user|>"]


@pytest.mark.parametrize("asked", ["add_generation_prompt", "true"])
def test_marks_around_some_answers_only_are_not_followed(asked: str, make_tokenizer: Make) -> None:
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{% if m.role == 'assistant' and loop.last %}{% generation %}{{ m.content + '<|im_end|>' }}"
        "{% endgeneration %}{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\n' }}"
        "{% endfor %}{% if ASKED %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ).replace("ASKED", asked)
    tokenizer = make_tokenizer(template)
    for first in ("eins", ""):
        record = chats.chat("one?", first, "two?", "zwei")
        found = ChatRenderer(tokenizer).render(ChatFormat().read(record))
        spans = [found.text[a:b] for a, b in found.spans]
        assert spans == [f"{first}<|im_end|>", "zwei<|im_end|>"]
        assert found.left_out == ()
    # The record says what is not learned.
    record["messages"][1]["weight"] = 0
    assert learned(tokenizer, record) == ["zwei<|im_end|>"]


BY_ID = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'tool' %}{{ 'Return of ' + m.tool_call_id + '\n' }}{% endif %}"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}{{ '<|call|>' }}{{ c.id }}"
    "{{ '<|with|>' + c.function.arguments | tojson }}{% endfor %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.mark.parametrize("arguments", [{"city": "Rome"}, {"days": 2}, {}])
def test_a_call_is_named_by_an_id_that_holds_its_name(
    arguments: dict[str, Any], make_tokenizer: Make
) -> None:
    def found(own: str | None) -> Any:
        call = {"type": "function", "function": {"name": "weather", "arguments": arguments}}
        result = {"role": "tool", "content": "sun", "tool_call_id": own or "none"}
        messages = [
            {"role": "user", "content": "go"},
            {"role": "assistant", "tool_calls": [{**call, "id": own} if own else call]},
            result,
            {"role": "assistant", "content": "ok"},
        ]
        return ChatRenderer(make_tokenizer(BY_ID)).render(ChatFormat().read({"messages": messages}))

    named = found("functions.weather:0")
    said = [named.text[a:b] for a, b in named.spans]
    expected = f"<|call|>functions.weather:0<|with|>{json.dumps(arguments)}<|im_end|>"
    assert said == [expected, "ok<|im_end|>"]
    assert named.left_out == ()
    for own in ("call_1", None):
        # With no text in its arguments nothing of the call is there to be seen.
        missing = NAMES if "city" in arguments else CALLS
        assert found(own).left_out == ((2, missing),)


def test_what_to_do_about_a_call_without_its_name() -> None:
    text = told([LeftOut(2, NAMES), LeftOut(2, THOUGHTS)])
    assert text.startswith("the names of tool calls of message 2, the thoughts of message 2")
    assert "functions.NAME:0" in text
    assert "functions" not in told([LeftOut(2, CALLS)])
    assert kinds_of_bits(kinds_as_bits([LeftOut(2, NAMES), LeftOut(4, CONTENT)])) == [
        CONTENT,
        NAMES,
    ]
