"""What is learned of conversations of many shapes with the templates of many families."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from launcher.config.schema import Thoughts
from launcher.data.chat import provenance
from launcher.data.chat.calls import CallForm, CallReader, CallText
from launcher.data.chat.masking import ChatOptions, ChatRenderer, NoTools, Rendering, told
from launcher.data.chat.provenance import CALLS, CONTENT, THOUGHTS, WHOLE, split_thoughts
from launcher.data.chat.template import CALL_ID
from launcher.data.formats.base import BadRecord, Chat
from launcher.data.prepare.encoding import Encoded, ExampleEncoder
from launcher.evals.records import prompt_and_reference
from support.draws import examples, some
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
    """The tokenizer of a family, one for all tests: who changes it copies it first."""
    return functools.cache(lambda family: tokenizer_of(tokenizer_folder, family))


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
    thought, rest = split_thoughts(content)
    calls = [made["function"] for made in message.get("tool_calls", ())]
    texts = {
        CONTENT: rest,
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


@settings(max_examples=examples(60), suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("family", some(FAMILIES, "qwen3", "gpt_oss"))
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


def thinking(family: str, make: Make, **options: Any) -> list[str]:
    """What is learned of two turns with a thought each."""
    found = render(make(family), SHAPES["thoughts in a field"], **options)
    assert isinstance(found, Rendering)
    return [found.text[a:b] for a, b in found.spans]


def test_thoughts_follow_the_template_or_the_config(make: Make) -> None:
    plain = "Д Ж.<|im_end|>"
    thought, later = "<think>\nЩ Щ\n</think>\n\n", "<think>\nЮ Ю\n</think>\n\n"
    empty, last = "<think>\n\n</think>\n\n", 'Щ "Ю"<|im_end|>'
    assert thinking("qwen3", make) == [plain, later + last]
    assert thinking("qwen3", make, thoughts=Thoughts.last) == [plain, later + last]
    assert thinking("qwen3", make, thoughts=Thoughts.none) == [plain, empty + last]
    unlearned = {"thoughts": Thoughts.none, "learn_empty_thoughts": False}
    assert thinking("qwen3", make, **unlearned) == [plain, last]
    # The prompt opens the thought; the template's own switch keeps those of earlier turns.
    opened = "<think>\n"
    assert thinking("qwen3_5", make) == [plain, later.removeprefix(opened) + last]
    kept = thinking("qwen3_5", make, variables={"preserve_thinking": True})
    assert kept == [(thought + plain).removeprefix(opened), (later + last).removeprefix(opened)]
    # There an empty thought is closed by the turn.
    assert thinking("qwen3_5", make, thoughts=Thoughts.none)[1] == "\n</think>\n\n" + last
    assert thinking("qwen3_5", make, **unlearned)[1] == last
    # Without thinking the prompt has the empty thought, which is then not learned.
    off = {"thoughts": Thoughts.none, "variables": {"enable_thinking": False}}
    assert thinking("qwen3", make, **off) == [plain, last]


def test_all_thoughts_are_learned_in_sequences_of_their_own(make: Make) -> None:
    tokenizer, chat = make("qwen3"), SHAPES["thoughts in a field"]
    (item,) = ExampleEncoder(tokenizer, chat=ChatOptions(thoughts=Thoughts.all)).encode([chat])
    assert isinstance(item, Encoded)
    assert not item.left_out
    learned = [tokenizer.decode(tokens[targets == 1]) for tokens, targets, *_ in item.pieces]
    assert learned == [
        "<think>\nЩ Щ\n</think>\n\nД Ж.<|im_end|>",
        '<think>\nЮ Ю\n</think>\n\nЩ "Ю"<|im_end|>',
    ]
    # The second one sees the first turn as the template shows it when asked the second question.
    assert "Щ Щ" not in tokenizer.decode(item.pieces[1][0])
    # What the template shows anyway stays one sequence.
    options = ChatOptions(thoughts=Thoughts.all, variables={"preserve_thinking": True})
    (item,) = ExampleEncoder(make("qwen3_5"), chat=options).encode([chat])
    assert isinstance(item, Encoded)
    assert len(item.pieces) == 1


def test_a_record_sets_variables_of_the_template_for_itself_alone(make: Make) -> None:
    tokenizer = make("qwen3")
    encoder = ExampleEncoder(tokenizer, chat=ChatOptions(variables={"enable_thinking": True}))
    talk = [USER, ANSWER]
    options: list[dict[str, Any]] = [{}, {"enable_thinking": False}, {"enable_thinking": True}, {}]
    items = encoder.encode([Chat(talk, template_options=own) for own in options])
    empty, answer = "<think>\n\n</think>\n\n", "Д Ж.<|im_end|>"
    learned, before = [], []
    for item in items:
        assert isinstance(item, Encoded)
        (piece,) = item.pieces
        prompt, reference = prompt_and_reference(piece[0].tolist(), piece[1].tolist())
        learned.append(tokenizer.decode(reference))
        before.append(tokenizer.decode(prompt))
    # Without thinking the empty thought is what the model is asked with, not what it learns.
    assert learned == [empty + answer, answer, empty + answer, empty + answer]
    asked = [
        tokenizer.apply_chat_template(
            [USER], add_generation_prompt=True, tokenize=False, enable_thinking=switch
        )
        for switch in (True, False, True, True)
    ]
    assert before == asked


def test_a_records_own_variables_hold_for_each_of_its_exchanges(make: Make) -> None:
    messages = SHAPES["thoughts in a field"].messages
    chat = Chat(messages, template_options={"preserve_thinking": True})
    encoder = ExampleEncoder(make("qwen3_5"), chat=ChatOptions(thoughts=Thoughts.all))
    kept, split = encoder.encode([chat, Chat(messages)])
    assert isinstance(kept, Encoded)
    assert isinstance(split, Encoded)
    assert [len(kept.pieces), len(split.pieces)] == [1, 2]
    # A variable that changes nothing of which thoughts are shown still reaches each part.
    named = Chat(messages, template_options={"enable_thinking": False})
    (item,) = encoder.encode([named])
    assert isinstance(item, Encoded)
    texts = [make("qwen3_5").decode(tokens) for tokens, *_ in item.pieces]
    (plain,) = ExampleEncoder(
        make("qwen3_5"),
        chat=ChatOptions(thoughts=Thoughts.all, variables={"enable_thinking": False}),
    ).encode([Chat(messages)])
    assert isinstance(plain, Encoded)
    assert texts == [make("qwen3_5").decode(tokens) for tokens, *_ in plain.pieces]


def test_what_is_left_out_is_named_by_message(make: Make) -> None:
    chat = SHAPES["thoughts in a field"]
    found = render(make("qwen3"), chat)
    assert isinstance(found, Rendering)
    assert found.left_out == ((2, THOUGHTS),)
    system = render(make("qwen3"), chat, system="β")
    assert isinstance(system, Rendering)
    assert system.left_out == ((2, THOUGHTS),)  # as the record numbers them
    silent = render(make("qwen3"), Chat(chat.messages, None, frozenset({1})))
    assert isinstance(silent, Rendering)
    assert silent.left_out == ()


def test_turns_of_others_that_are_not_written_are_named(make: Make) -> None:
    system, other = says("system", "μν ξ"), says("system", "ο πρ")
    tokenizer = copy.deepcopy(make("qwen2_5"))
    tokenizer.chat_template = (
        "{% for m in messages if m['role'] != 'system' %}{{ '<|im_start|>' + m['role'] + '\n' "
        "+ m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    deaf = ChatRenderer(tokenizer, ChatOptions(system="σ τ"))
    for _ in range(3):  # looked for, then known of its shape
        assert deaf.render(Chat([system, USER, ANSWER])).left_out == ((1, WHOLE),)
        own = deaf.render(Chat([USER, ANSWER, AGAIN, LATER])).left_out
        assert own == ((0, WHOLE),)
        assert told(own) == "data.system"
    found = render(make("falcon_h1"), Chat([system, USER, ANSWER, other, AGAIN, LATER]))
    assert isinstance(found, Rendering)
    assert found.left_out == ((4, WHOLE),)
    assert told(found.left_out) == "message 4"
    found = render(make("deepseek_r1"), Chat([USER, ANSWER], TOOLS))
    assert isinstance(found, Rendering)
    assert found.left_out == ((0, provenance.TOOLS),)
    assert told(found.left_out) == "the declared tools"


@pytest.mark.parametrize("family", ["deepseek_r1", "qwen2_5", "glm4_5", "gemma4"])
def test_arguments_reach_the_template_as_it_wants_them(family: str, make: Make) -> None:
    chat = Chat([USER, call("Ж", city="Д é", open=True), result("γ"), ANSWER], TOOLS)
    found = render(make(family), chat)
    assert isinstance(found, Rendering)
    said = found.text[slice(*found.spans[0])]
    assert {
        "deepseek_r1": '{"city": "Д é", "open": true}',
        "qwen2_5": '{"city": "Д é", "open": true}',
        "glm4_5": "<arg_value>Д é</arg_value>",
        "gemma4": '{city:<|"|>Д é<|"|>,open:true}',
    }[family] in said


@pytest.mark.parametrize(
    ("family", "learned"),
    [
        ("llama4", ['<|python_start|><|python_end|>{"name": "Ж", "parameters": {"city": "Д"}}']),
        ("granite4", ['<tool_call>\n{"name": "Ж", "arguments": {"city": "Д"}}\n</tool_call>']),
        ("ministral3", ['[TOOL_CALLS]Ж[ARGS]{"city": "Д"}']),
        ("granite3_3", []),
        ("falcon_h1", []),
        ("phi4", []),
        ("phi4_first", []),
    ],
)
def test_a_call_and_its_answer_are_learned_as_written(
    family: str, learned: list[str], make: Make
) -> None:
    found = render(make(family), Chat([USER, call("Ж", city="Д"), result("γ"), ANSWER], TOOLS))
    assert isinstance(found, Rendering)
    (end,) = FAMILIES[family].ends
    said = [found.text[a:b] for a, b in found.spans]
    assert said == [text + end for text in (*learned, "Д Ж.")]
    expected = () if learned else ((2, CALLS),)
    if family.startswith("phi4"):
        expected = ((0, provenance.TOOLS), (2, CALLS), (3, WHOLE))
    assert found.left_out == expected


def test_what_stands_beside_a_call_is_learned_with_it(make: Make) -> None:
    spoken = {**call("Ж", city="Д"), "content": "Щ"}
    found = render(make("llama4"), Chat([USER, spoken, result("γ"), ANSWER], TOOLS))
    assert isinstance(found, Rendering)
    whole = '<|python_start|>Щ<|python_end|>{"name": "Ж", "parameters": {"city": "Д"}}<|eot|>'
    assert found.text[slice(*found.spans[0])] == whole


@pytest.mark.parametrize("calls", [[], None])
@pytest.mark.parametrize("family", ["llama3_1", "mistral", "gpt_oss", "deepseek_r1"])
def test_a_list_of_no_calls_is_none(family: str, calls: Any, make: Make) -> None:
    with_list = Chat([USER, {**ANSWER, "tool_calls": calls}])
    assert render(make(family), with_list) == render(make(family), Chat([USER, ANSWER]))


def tagged(text: str, **extra: Any) -> Message:
    return says("assistant", f"<think>\n{text}\n</think>\n\nД Ж", **extra)


def said(make: Make, family: str, *messages: Message, **options: Any) -> str:
    found = render(make(family), Chat([USER, *messages]), **options)
    assert isinstance(found, Rendering), found
    return "".join(found.text[a:b] for a, b in found.spans)


def test_a_thought_in_tags_goes_where_the_template_reads_it(make: Make) -> None:
    analysis, final = "<|channel|>analysis<|message|>", "<|channel|>final<|message|>Д Ж<|return|>"
    expected = f"{analysis}Щ<|end|><|start|>assistant{final}"
    assert said(make, "gpt_oss", tagged("Щ")) == expected
    assert said(make, "gpt_oss", says("assistant", "[THINK]Щ[/THINK]Д Ж")) == expected
    assert said(make, "gpt_oss", tagged("Щ", reasoning_content="")) == expected
    # An empty one says nothing; one that is no beginning is a part of what is said.
    assert said(make, "gpt_oss", tagged("")) == final
    inside = "Д <think>Щ</think> Ж"
    assert inside in said(make, "gpt_oss", says("assistant", inside))
    # Gemma writes thoughts before calls only: of others they are left out, and named.
    found = render(make("gemma4"), Chat([USER, tagged("Щ")]))
    assert isinstance(found, Rendering)
    assert found.left_out == ((2, THOUGHTS),)
    assert [found.text[a:b] for a, b in found.spans] == ["Д Ж<turn|>"]
    before = {**CALL, "content": "<think>Щ</think>"}
    assert said(make, "gemma4", before).startswith("Щ\n<channel|><|tool_call>call:Ж")
    # Those that know the tags, or nothing of thoughts, get them as they are.
    whole = "<think>\nЩ\n</think>\n\nД Ж"
    assert said(make, "qwen3", tagged("Щ")) == whole + "<|im_end|>"
    assert said(make, "phi4_mini", tagged("Щ")) == whole + "<|end|>"


def test_a_thought_without_words_is_not_missed(make: Make) -> None:
    for turns in ([tagged("")], [tagged(""), AGAIN, LATER]):
        found = render(make("deepseek_r1"), Chat([USER, *turns]))
        assert isinstance(found, Rendering)
        assert found.left_out == ()


@pytest.mark.parametrize("field", ["reasoning_content", "thinking"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_thought_that_is_given_twice_is_learned_once(family: str, field: str, make: Make) -> None:
    twice = Chat([USER, tagged("Щ Щ", **{field: " Щ  Щ\n"})])
    once = Chat([USER, tagged("Щ Щ")])
    found, expected = render(make(family), twice), render(make(family), once)
    assert isinstance(found, Rendering)
    assert isinstance(expected, Rendering)
    assert found.left_out == expected.left_out
    learned = "".join(found.text[a:b] for a, b in found.spans)
    assert learned.count("Щ") == (0 if found.left_out else 2)
    # Where one of them is empty the other is meant.
    for empty in (tagged("Щ Щ", **{field: " "}), tagged("", **{field: "Щ Щ"})):
        other = render(make(family), Chat([USER, empty]))
        assert isinstance(other, Rendering)
        assert letters("".join(other.text[a:b] for a, b in other.spans), "Щ") in ("", "ЩЩ")
        assert bool(other.left_out) == ("Щ" not in other.text)


def test_two_different_thoughts_of_one_turn_are_refused(make: Make) -> None:
    for family in ("qwen3", "gpt_oss", "phi4_mini"):
        found = render(make(family), Chat([USER, tagged("Щ", reasoning="Ю")]), system="β")
        assert isinstance(found, BadRecord)
        assert "'reasoning' of message 2 and the thought in <think>" in found.found
        assert "say different things" in found.found
        assert "data.columns.reasoning=" in found.hint


def test_tags_are_not_doubled_by_a_template_that_does_not_look_for_them(
    tokenizer_folder: Path,
) -> None:
    # As some that keep all thoughts: a thought in a field alone is one to them.
    tokenizer = copy.deepcopy(tokenizer_of(tokenizer_folder, "qwen3"))
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
        "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}"
        "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n<think>\n' }}{% endif %}"
    )
    found = ChatRenderer(tokenizer).render(Chat([USER, tagged("Щ"), AGAIN, tagged("Ю")]))
    assert [found.text[a:b] for a, b in found.spans] == [
        f"{thought}\n</think>\n\nД Ж<|im_end|>" for thought in "ЩЮ"
    ]


SWITCHED = """{%- set ns = namespace(on=false) -%}
{%- for m in messages -%}
{%- if m.role != 'assistant' and '/think' in m.content -%}{%- set ns.on = true -%}{%- endif -%}
{%- if m.role == 'assistant' -%}<|im_start|>assistant
<think>
{{ m.reasoning_content or '' }}
</think>

{{ m.content }}<|im_end|>
{% else -%}<|im_start|>{{ m.role }}
{{ m.content }}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if not ns.on %}<think>

</think>

{% endif %}{% endif %}"""


def test_a_switch_in_what_people_say_decides_what_the_prompt_opens(make: Make) -> None:
    tokenizer = copy.deepcopy(make("qwen2_5"))
    tokenizer.chat_template = SWITCHED
    known = ChatRenderer(tokenizer)
    for i in range(3):
        for text, thought, learned in (
            ("α", "", "Д Ж.<|im_end|>"),
            ("α /think", "Щ", "<think>\nЩ\n</think>\n\nД Ж.<|im_end|>"),
        ):
            answer = ANSWER | ({"reasoning_content": thought} if thought else {})
            chat = Chat([says("user", text + "β" * i), answer])
            found = known.render(chat)
            assert [found.text[a:b] for a, b in found.spans] == [learned]


def test_white_space_of_an_answer_behind_an_empty_thought_is_learned(make: Make) -> None:
    known = ChatRenderer(make("qwen3"), ChatOptions(learn_empty_thoughts=False))
    for text in ("Д", "Ж Щ", "  Д", "\tЖ"):
        found = known.render(Chat([USER, says("assistant", text)]))
        assert [found.text[a:b] for a, b in found.spans] == [f"{text}<|im_end|>"]


def test_a_silent_turn_stays_silent_where_its_shape_is_known(make: Make) -> None:
    tokenizer = copy.deepcopy(make("qwen2_5"))
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role != 'assistant' %}{{ '<|im_start|>' + m.role + '\n' "
        "+ m.content + '<|im_end|>\n' }}{% elif loop.previtem.role != 'assistant' %}"
        "{{ '<|im_start|>assistant\n' }}{% generation %}{% for one in messages[loop.index0:] %}"
        "{{ one.content + '\n' }}{% endfor %}<|im_end|>{% endgeneration %}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    known = ChatRenderer(tokenizer)
    for _ in range(3):
        both = known.render(Chat([USER, ANSWER, LATER]))
        assert len(both.spans) == 1
        with pytest.raises(BadRecord, match="into what the model is to learn"):
            known.render(Chat([USER, ANSWER, LATER], None, frozenset({2})))


@pytest.mark.parametrize("text", ["\\", '"'])
def test_an_answer_without_a_letter_is_learned_beside_a_call_that_is_not_written(
    text: str, make: Make
) -> None:
    known = ChatRenderer(make("phi4_mini"))
    for _ in range(3):
        message = call("Ж", city="Д") | {"content": text}
        found = known.render(Chat([USER, message]))
        assert [found.text[a:b] for a, b in found.spans] == [f"{text}<|end|>"]
        assert (2, CALLS) in found.left_out


@pytest.mark.thorough
def test_more_texts_than_there_are_marks_are_no_crash(make: Make) -> None:
    many = [says("user" if i % 2 else "system", "α") for i in range(66_000)]
    found = render(make("qwen2_5"), Chat([*many, ANSWER]))
    assert isinstance(found, BadRecord)
    assert "65,520 texts" in found.found


@pytest.mark.parametrize(
    ("family", "form"),
    [
        # Tokens that are special in a tokenizer are not shown in answers.
        ("qwen2_5", ("", "", "arguments")),
        ("granite4", ("<tool_call>", "</tool_call>", "arguments")),
        ("llama3_1", ("", "", "parameters")),
        ("qwen3_5", None),
        ("glm4_5", None),
        ("gpt_oss", None),
        ("phi4", None),
    ],
)
def test_the_form_of_calls_is_read_off_the_template(make: Make, family: str, form: Any) -> None:
    found = CallForm.of(make(family))
    assert (found and (found.opened, found.closed, found.arguments)) == form


def test_calls_in_an_answer_are_those_of_the_tools_that_its_record_has(make: Make) -> None:
    said = '{"name": "f", "parameters": {"x": "1"}}'
    reader = CallReader(make("llama3_1"))
    function = {"name": "f", "arguments": '{"x": "1"}'}
    called = [{"id": "call00000", "type": "function", "function": function}]
    described = {"name": "f", "parameters": {"type": "object"}}
    for record, found in (
        ({"tools": [{"type": "function", "function": described}]}, called),
        ({"functions": [described]}, called),
        ({"tools": [{"type": "function", "function": {**described, "name": "g"}}]}, []),
        ({}, []),
        ({"tools": 7}, []),
    ):
        assert reader.calls(record, said) == found, record
    with_tool = {"functions": [described]}
    assert reader.calls(with_tool, "No call.") == []
    assert CallReader(make("phi4")).calls(with_tool, said) == []  # a template that writes none


@pytest.mark.parametrize(
    "family", ["qwen2_5", "qwen3", "granite4", "llama3_1", "llama4", "mistral"]
)
def test_an_answer_of_calls_is_what_the_template_writes(make: Make, family: str) -> None:
    tokenizer = make(family)
    form, text = CallForm.of(tokenizer), CallText.of(tokenizer)
    assert form is not None
    assert text is not None
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    said = f'{text.opened}{text.begin}"f"{text.middle}{{"x": "1"}}{text.end}'
    turn = ChatRenderer(tokenizer).render(Chat([says("user", "q"), call("f", x="1")], tools))
    written = [turn.text[begin:end] for begin, end in turn.spans][-1]
    assert re.search(re.escape(said + text.closed).replace(CALL_ID, r"\w+"), written)
    if text.between is not None:
        said += text.between + said[len(text.opened) :]
    decoded = tokenizer.decode(
        tokenizer(said + text.closed, add_special_tokens=False)["input_ids"],
        skip_special_tokens=True,
    )
    calls = form.read(decoded, {"f"})[1]
    assert [one.name for one in calls] == ["f"] * (1 if text.between is None else 2)


@pytest.mark.parametrize("family", ["qwen2_5", "llama3_1", "gemma3", "phi4", "gpt_oss"])
def test_developers_speak_as_the_system_unless_the_template_knows_them(
    make: Make, family: str
) -> None:
    tokenizer = make(family)
    answer = [says("user", "q"), says("assistant", "a")]
    texts = [
        ChatRenderer(tokenizer).render(Chat([says(role, "Be brief."), *answer])).text
        for role in ("developer", "system")
    ]
    assert texts[0] == texts[1]
    assert "Be brief." in texts[0]


def test_a_prompt_is_what_training_writes_before_the_answer(make: Make) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    turns = [says("user", "q"), call("f", x="1"), result("3")]
    for family in ("qwen2_5", "qwen3", "llama3_1", "granite4"):
        renderer = ChatRenderer(make(family))
        whole = renderer.render(Chat([*turns, says("assistant", "done")], tools))
        assert renderer.prompt(turns, tools, whole=True).text == whole.text[: whole.spans[-1][0]]


def test_a_prompt_of_which_the_template_leaves_out_a_turn_is_refused(make: Make) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    turns = [says("user", "q"), call("f", x="1"), result("3")]
    renderer = ChatRenderer(make("phi4"))
    with pytest.raises(BadRecord, match="leaves out"):
        renderer.prompt(turns, None, whole=True)
    with pytest.raises(NoTools):
        renderer.prompt(turns[:1], tools)
