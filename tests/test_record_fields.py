"""Every field that the wide-spread tools give a meaning to is read, or refused by its name."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launcher.config.compose import compose
from launcher.data.formats import (
    BadRecord,
    Chat,
    Labelled,
    Pair,
    Preference,
    Ranked,
    Reader,
    Text,
    Unpaired,
    detect,
)
from launcher.data.formats.preference import how_to_learn_chosen
from launcher.record_fields import EVERY, FIELDS, JUDGED, TURN_FIELDS, Field, Use

SYSTEM = {"role": "system", "content": "Be kind."}
USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
WORSE = {"role": "assistant", "content": "b"}
EARLIER = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}]
TOOL = {"type": "function", "function": {"name": "add"}}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
CALLED = {"tool_calls": [{"function": {"name": "f"}}], "function_call": {"name": "g"}}

#: A record of each format, and what it is.
PLAIN: dict[str, dict[str, Any]] = {
    "chat": {"messages": [USER, ANSWER]},
    "sharegpt": {"conversations": [HUMAN, GPT]},
    "prompt": {"prompt": "q", "completion": "a"},
    "alpaca": {"instruction": "q", "output": "a"},
    "preference": {"prompt": "q", "chosen": "a", "rejected": "b"},
    "ranked": {"prompt": "q", "completions": ["b", "a"], "ranks": [2, 1]},
    "unpaired": {"prompt": "q", "completion": "a", "label": True},
    "classification": {"text": "q", "label": "a"},
    "text": {"text": "q"},
}
IS: dict[str, Any] = {
    "chat": Chat([USER, ANSWER]),
    "sharegpt": Chat([USER, ANSWER]),
    "prompt": Pair("q", "a"),
    "alpaca": Pair("q", "a"),
    "preference": Preference([USER], [ANSWER], [WORSE]),
    "ranked": Ranked([USER], ([ANSWER], [WORSE]), (-1.0, -2.0), is_rated=False),
    "unpaired": Unpaired([USER], [ANSWER], True),
    "classification": Labelled("q", "a"),
    "text": Text("q"),
}


def read(name: str, record: Any, columns: Mapping[str, str] | None = None) -> Any:
    result = Reader(name, columns or {}).read(record)
    return result if isinstance(result, BadRecord) else result[0]


def read_cases() -> list[tuple[str, str, dict[str, Any], Any]]:
    """Field, format, a record with the field, and what is made of it."""
    cases: list[tuple[str, str, dict[str, Any], Any]] = []
    for name in ("chat", "sharegpt", "prompt", "alpaca"):
        for field in ("system", "system_prompt"):
            told = Chat([SYSTEM, USER, ANSWER])
            cases.append((field, name, PLAIN[name] | {field: "Be kind."}, told))
        with_tool = Chat([USER, ANSWER], [TOOL])
        cases.append(("tools", name, PLAIN[name] | {"tools": [TOOL]}, with_tool))
        functions = {"functions": [TOOL["function"]]}
        cases.append(("functions", name, PLAIN[name] | functions, with_tool))
        options = {"chat_template_kwargs": {"enable_thinking": False, "effort": None}}
        said = Chat([USER, ANSWER], template_options={"enable_thinking": False})
        cases.append(("chat_template_kwargs", name, PLAIN[name] | options, said))
    for name in ("prompt", "alpaca"):
        history = {"history": [["q0", "a0"]]}
        cases.append(("history", name, PLAIN[name] | history, Chat([*EARLIER, USER, ANSWER])))
    for name in JUDGED:
        cases += judged_cases(name)
    for field in ("chosen", "preferred_output"):
        record = {"prompt": "q", field: [ANSWER], "rejected": "b"}
        cases.append((field, "preference", record, IS["preference"]))
    for field in ("rejected", "non_preferred_output"):
        record = {"prompt": "q", "chosen": "a", field: [WORSE]}
        cases.append((field, "preference", record, IS["preference"]))
    record = {"messages": [USER, ANSWER], "rejected_response": "b"}
    cases.append(("rejected_response", "preference", record, IS["preference"]))
    record = {"messages": [USER, ANSWER], "rejected_messages": [USER, WORSE]}
    cases.append(("rejected_messages", "preference", record, IS["preference"]))
    pair, better = PLAIN["preference"], replace(IS["preference"], margin=2.0)
    cases.append(("margin", "preference", pair | {"margin": 2}, better))
    for names in (
        ("score_chosen", "score_rejected"),
        ("chosen_score", "rejected_score"),
        ("chosen_rating", "rejected_rating"),
    ):
        rated = pair | dict(zip(names, (3.5, "1.5"), strict=True))
        cases += [(field, "preference", rated, better) for field in names]
    for field in ("completions", "responses", "answers"):
        record = {"prompt": "q", field: ["b", "a"], "ranks": [2, 1]}
        cases.append((field, "ranked", record, IS["ranked"]))
    for field in ("ranks", "ranking"):
        record = {"prompt": "q", "completions": ["b", "a"], field: [2, 1]}
        cases.append((field, "ranked", record, IS["ranked"]))
    rated = replace(IS["ranked"], scores=(4.0, 1.0), is_rated=True)
    for field in ("scores", "ratings"):
        record = {"prompt": "q", "completions": ["b", "a"], field: [1, 4]}
        cases.append((field, "ranked", record, rated))
    for field in ("completion", "response", "output"):
        record = {"prompt": "q", field: "a", "label": True}
        cases.append((field, "unpaired", record, IS["unpaired"]))
    for field in ("label", "kto_tag", "desirable", "rating"):
        record = {"prompt": "q", "completion": "b", field: False}
        cases.append((field, "unpaired", record, Unpaired([USER], [WORSE], False)))
    cases.append(("messages", "chat", PLAIN["chat"], IS["chat"]))
    cases.append(("conversations", "sharegpt", PLAIN["sharegpt"], IS["sharegpt"]))
    turns = [{"human": "q", "assistant": "a"}]
    cases.append(("conversation", "sharegpt", {"conversation": turns}, IS["sharegpt"]))
    for field in ("prompt", "query", "question"):
        cases.append((field, "prompt", {field: "q", "response": "a"}, IS["prompt"]))
    for field in ("completion", "response"):
        cases.append((field, "prompt", {"prompt": "q", field: "a"}, IS["prompt"]))
    cases.append(("instruction", "alpaca", PLAIN["alpaca"], IS["alpaca"]))
    for field in ("input", "context", "query"):
        cases.append((field, "alpaca", PLAIN["alpaca"] | {field: "it"}, Pair("q\n\nit", "a")))
    for field in ("output", "response"):
        cases.append((field, "alpaca", {"instruction": "q", field: "a"}, IS["alpaca"]))
    cases.append(("text", "classification", PLAIN["classification"], IS["classification"]))
    cases.append(("label", "classification", PLAIN["classification"], IS["classification"]))
    cases.append(("text", "text", PLAIN["text"], IS["text"]))
    return cases


def judged_cases(name: str) -> list[tuple[str, str, dict[str, Any], Any]]:
    """The same of what stands beside answers that are judged."""
    plain, made = PLAIN[name], IS[name]
    told = replace(made, prompt=[SYSTEM, USER])
    cases = [(f, name, plain | {f: "Be kind."}, told) for f in ("system", "system_prompt")]
    with_tool = replace(made, tools=[TOOL])
    cases.append(("tools", name, plain | {"tools": [TOOL]}, with_tool))
    cases.append(("functions", name, plain | {"functions": [TOOL["function"]]}, with_tool))
    options = {"chat_template_kwargs": {"enable_thinking": False, "effort": None}}
    said = replace(made, template_options={"enable_thinking": False})
    cases.append(("chat_template_kwargs", name, plain | options, said))
    earlier = replace(made, prompt=[*EARLIER, USER])
    cases.append(("history", name, plain | {"history": [["q0", "a0"]]}, earlier))
    asked = dict.fromkeys(("prompt", "input", "instruction", "query", "question"), "q")
    without = {field: value for field, value in plain.items() if field != "prompt"}
    for field, value in (asked | {"messages": [USER], "conversations": [HUMAN]}).items():
        cases.append((field, name, {field: value, **without}, made))
    return cases


def ids(cases: list[Any]) -> list[str]:
    return ["-".join(part for part in case if isinstance(part, str)) for case in cases]


@pytest.mark.parametrize(("field", "name", "record", "expected"), c := read_cases(), ids=ids(c))
def test_a_field_is_read(field: str, name: str, record: dict[str, Any], expected: Any) -> None:
    assert field in record
    assert read(name, record) == expected
    assert detect([record], {}) == name


def test_every_field_that_is_read_has_a_case() -> None:
    known = {(field, name) for field, name, _, _ in read_cases()}
    said = {
        (name, of)
        for field in FIELDS
        for name in field.names
        for of in field.formats
        if field.use is Use.read
    }
    assert said - known == {("weight", name) for name in EVERY}


@pytest.mark.parametrize("name", EVERY)
def test_a_weight_is_read_in_every_format(name: str) -> None:
    assert Reader(name, {}).read(PLAIN[name] | {"weight": 2}) == (IS[name], 2.0)
    assert Reader(name, {}).read(PLAIN[name] | {"weight": ""}) == (IS[name], 1.0)


def placed(fields: tuple[Field, ...], use: Use) -> list[tuple[str, str]]:
    return [
        (name, of)
        for field in fields
        if field.use is use
        for name in field.names
        for of in field.formats
    ]


def saying(field: str) -> list[Any]:
    """Values with which a field says something."""
    verdicts = [True, False, 0, 1, 0.5, "True", "false", "0", "-1", "bad", " Rejected "]
    return verdicts if field in ("label", "kto_tag", "desirable") else [["x"], {"x": 1}, "x"]


@pytest.mark.parametrize(("field", "name"), placed(FIELDS, Use.refused))
def test_a_field_is_refused_by_its_name(field: str, name: str) -> None:
    for value in saying(field):
        record = PLAIN[name] | {field: value}
        refused = read(name, record)
        assert isinstance(refused, BadRecord), value
        assert f"field {field!r} is not read: " in refused.found
        assert f"data.columns.{field}=" in refused.hint
        assert read(name, record, {field: ""}) == IS[name]
    for value in (None, "", [], {}, "[]", " ", "null"):  # as tables write what is not there
        assert read(name, PLAIN[name] | {field: value}) == IS[name]


@pytest.mark.parametrize(("field", "name"), placed(FIELDS, Use.nothing))
def test_a_field_changes_nothing(field: str, name: str) -> None:
    value = "b" if field.startswith(("chosen", "rejected")) else 0.5
    assert read(name, PLAIN[name] | {field: value}) == IS[name]


@pytest.mark.parametrize("name", EVERY)
def test_names_of_a_users_own_are_left_alone(name: str) -> None:
    own = {"id": 7, "source": "x", "category": ["y"], "label2": True, "meta": {"images": ["z"]}}
    assert read(name, PLAIN[name] | own) == IS[name]


def test_what_the_hints_say_can_be_typed() -> None:
    words = ["model=tiny", "data.train=a.jsonl"]
    for field in ("images", "label", "chat_template_kwargs"):
        config = compose.compose([*words, f"data.columns.{field}="])
        assert config.data.columns == {field: ""}
    config = compose.compose([*words, "data=prompt", "data.columns.weight=label"])
    assert config.data.columns == {"weight": "label"}


@pytest.mark.parametrize("name", ["chat", "sharegpt", "prompt", "alpaca"])
@pytest.mark.parametrize("field", ["label", "kto_tag"])
@pytest.mark.parametrize(
    ("verdict", "weight"),
    [(True, 1), (False, 0), (1, 1), (0, 0), ("True", 1), ("False", 0), ("1", 1), ("0", 0)],
)
def test_verdicts_can_be_weights(name: str, field: str, verdict: Any, weight: float) -> None:
    read = Reader(name, {"weight": field}).read(PLAIN[name] | {field: verdict})
    assert read == (IS[name], weight)


def test_a_label_that_is_a_word_is_a_users_own() -> None:
    assert read("prompt", PLAIN["prompt"] | {"label": "math"}) == IS["prompt"]


def turn_record(name: str, **members: Any) -> dict[str, Any]:
    if name == "chat":
        return {"messages": [USER, {**ANSWER, **members}, USER, ANSWER]}
    return {"conversations": [HUMAN, {**GPT, **members}, HUMAN, GPT]}


@pytest.mark.parametrize("name", ["chat", "sharegpt"])
@pytest.mark.parametrize(
    "flag", ["weight", "train", "training", "loss", "loss_weight", "loss_scale"]
)
def test_flags_of_a_turn_say_whether_it_is_learned(name: str, flag: str) -> None:
    for value in (0, False, 0.0):
        found = read(name, turn_record(name, **{flag: value}))
        assert found == Chat([USER, ANSWER, USER, ANSWER], None, frozenset({1}))
    for value in (1, True, None):
        assert read(name, turn_record(name, **{flag: value})).context_only == frozenset()
    for value in (0.5, "yes", [1]):
        refused = read(name, turn_record(name, **{flag: value}))
        assert f"message 2 has {flag} {value!r}" in refused.found


def test_what_a_user_says_is_not_learned_even_if_asked_for() -> None:
    for flag in ("weight", "loss"):  # every turn has them in some sets
        assert read("chat", {"messages": [{**USER, flag: 1}, ANSWER]}) == IS["chat"]
    for flag in ("train", "training"):
        assert read("chat", {"messages": [{**USER, flag: False}, ANSWER]}) == IS["chat"]
        refused = read("chat", {"messages": [{**USER, flag: True}, ANSWER]})
        assert refused.found == f"message 1 (user) has {flag} true"


@pytest.mark.parametrize(("field", "name"), placed(TURN_FIELDS, Use.refused))
def test_a_member_of_a_turn_is_refused_by_its_name(field: str, name: str) -> None:
    value = False if field in ("label", "desirable") else [{"begin_offset": 0}]
    record = turn_record(name, **{field: value})
    refused = read(name, record)
    assert f"{field!r} in message 2 is not read: " in refused.found
    assert f"data.columns.{field}=" in refused.hint
    four = Chat([USER, ANSWER, USER, ANSWER])
    assert read(name, record, {field: ""}) == four
    for value in (None, [], ""):
        found = read(name, turn_record(name, **{field: value}))
        assert [turn["content"] for turn in found.messages] == ["q", "a", "q", "a"]


@pytest.mark.parametrize("name", ["chat", "sharegpt"])
@pytest.mark.parametrize("none", [None, [], {}, "", "[]"])
def test_no_calls_are_no_calls(name: str, none: Any) -> None:
    four = Chat([USER, ANSWER, USER, ANSWER])
    for field in ("tool_calls", "function_call"):
        assert read(name, turn_record(name, **{field: none})) == four
    empty = read(name, turn_record(name, tool_calls=none, content=None, value=None))
    assert "the content of message 2 (assistant) is null" in empty.found


@pytest.mark.parametrize("caller", ["function_call", "tool_call", "Function_Call"])
@pytest.mark.parametrize("answerer", ["observation", "tool_response", "function", "tool"])
def test_a_speaker_may_be_a_call(caller: str, answerer: str) -> None:
    function = {"name": "f", "arguments": {"x": 1}}
    called = {"role": "assistant", "tool_calls": [{"function": function}]}
    expected = Chat([USER, called, {"role": "tool", "content": "1"}, ANSWER])
    call = json.dumps(function)
    spoken = [("user", "q"), (caller, call), (answerer, "1"), ("assistant", "a")]
    turns = [{"role": who, "content": said} for who, said in spoken]
    assert read("chat", {"messages": turns}) == expected
    turns = [{"from": who, "value": said} for who, said in spoken]
    assert read("sharegpt", {"conversations": turns}) == expected


def test_columns_of_pairs_that_are_empty_make_no_pair() -> None:
    record = PLAIN["prompt"] | {"chosen": None, "rejected": None, "rejected_response": ""}
    assert detect([record], {}) == "prompt"


def test_members_that_are_null_are_not_there_but_arguments_keep_theirs() -> None:
    arguments = {"x": None, "y": [None], "z": {"w": None}}
    function = {"name": "f", "arguments": arguments, "strict": None}
    call = {"id": None, "type": "function", "index": None, "function": function}
    message = {"role": "assistant", "content": None, "tool_calls": [call], "audio": None}
    parameters = {"properties": {"x": {"default": None, "enum": [1, None]}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters, "strict": None}}
    found = read("chat", {"messages": [USER, message], "tools": [tool]})
    called = {"type": "function", "function": {"name": "f", "arguments": arguments}}
    assert found.messages[1] == {"role": "assistant", "tool_calls": [called]}
    assert found.tools == [
        {"type": "function", "function": {"name": "f", "parameters": parameters}}
    ]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [(None, {}), ("", {}), ("{}", {}), ('{"x": null}', {"x": None}), ({"x": 1}, {"x": 1})],
)
def test_arguments_are_an_object(arguments: Any, expected: dict[str, Any]) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    found = read("chat", {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]})
    assert found.messages[1]["tool_calls"][0]["function"]["arguments"] == expected


@pytest.mark.parametrize("arguments", ["[1]", [1], "3", 3, "{'x': 1}"])
def test_arguments_that_are_none(arguments: Any) -> None:
    call = {"function": {"name": "f", "arguments": arguments}}
    refused = read("chat", {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]})
    assert "message 2: the arguments of 'f' are " in refused.found
    assert refused.hint


def test_a_refusal_is_what_is_said() -> None:
    said = {"role": "assistant", "content": None, "refusal": "a"}
    assert read("chat", {"messages": [USER, said]}) == IS["chat"]
    parts = [{"type": "refusal", "refusal": "a"}]
    assert read("chat", {"messages": [USER, {**ANSWER, "content": parts}]}) == IS["chat"]
    refused = read("chat", {"messages": [USER, {**ANSWER, "refusal": "no"}]})
    assert "a content and a refusal" in refused.found


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (PLAIN["chat"] | {"system": ["x"]}, "field 'system' is a list, not text"),
        ({"messages": [SYSTEM, USER, ANSWER], "system": "Be rude."}, "two system messages"),
        (PLAIN["chat"] | {"system": "x", "system_prompt": "y"}, "say different things"),
        (PLAIN["alpaca"] | {"history": [["q0"]]}, "turn 1 of 'history' is no pair"),
        (PLAIN["alpaca"] | {"history": [["q0", ""]]}, "turn 1 of 'history' is no pair"),
        (PLAIN["alpaca"] | {"history": {"q0": "a0"}}, "turn 1 of 'history' is no pair"),
        (PLAIN["alpaca"] | {"input": "x", "context": "y"}, "say different things"),
        ({"prompt": [USER], "completion": [USER]}, "no assistant's message behind the prompt"),
        ({"prompt": [USER], "completion": []}, "'completion' is an empty list"),
    ],
)
def test_what_cannot_be_meant_is_refused(record: dict[str, Any], found: str) -> None:
    refused = read(detect([record], {}), record)
    assert found in refused.found
    assert refused.hint


@pytest.mark.parametrize("name", ["chat", "sharegpt", "prompt", "alpaca", "preference"])
def test_variables_of_the_template_are_an_object_of_its_own_names(name: str) -> None:
    field = "chat_template_kwargs"
    for value in (None, "", {}, "{}", "null", " ", {"enable_thinking": None}):
        assert read(name, PLAIN[name] | {field: value}) == IS[name]
    for value in (["x"], "[1]", '"on"', "true", True, 1, "3"):
        refused = read(name, PLAIN[name] | {field: value})
        assert f"field {field!r} is " in refused.found
        assert f"data.columns.{field}=" in refused.hint
    refused = read(name, PLAIN[name] | {field: "enable_thinking=False"})
    assert f"field {field!r} is no JSON" in refused.found
    for own in ("messages", "tools", "add_generation_prompt", "tokenize", "chat_template"):
        for given in ({own: None, "x": 1}, json.dumps({own: True})):
            refused = read(name, PLAIN[name] | {field: given})
            assert f"{field!r} sets {own!r}" in refused.found
            assert read(name, PLAIN[name] | {field: given}, {field: ""}) == IS[name]


@pytest.mark.parametrize("name", ["chat", "sharegpt", "prompt", "alpaca"])
@pytest.mark.parametrize("field", ["system_message", "system_instruction", "systemInstruction"])
def test_a_system_message_of_another_name_is_read_as_hinted(name: str, field: str) -> None:
    record = PLAIN[name] | {field: "Be kind."}
    refused = read(name, record)
    assert f"data.columns.system={field};" in refused.hint
    assert read(name, record, {"system": field}) == Chat([SYSTEM, USER, ANSWER])


def test_channels_of_turns_are_those_of_answers() -> None:
    for channel, recipient in (("final", "all"), ("final", None), (None, None)):
        said = {**ANSWER, "channel": channel, "recipient": recipient}
        assert isinstance(read("chat", {"messages": [USER, said]}), Chat)
    thought = {**ANSWER, "channel": "analysis"}
    refused = read("chat", {"messages": [USER, thought, {**ANSWER, "channel": "final"}]})
    assert "'channel' in message 2 is not read" in refused.found
    called = {**ANSWER, "recipient": "functions.f"}
    assert "'recipient' in message 2" in read("chat", {"messages": [USER, called]}).found


@pytest.mark.parametrize("kind", ["thinking", "reasoning"])
def test_thoughts_as_parts_are_refused_with_the_way_to_write_them(kind: str) -> None:
    parts = [{"type": kind, kind: "t"}, {"type": "text", "text": "a"}]
    refused = read("chat", {"messages": [USER, {"role": "assistant", "content": parts}]})
    assert refused.found == f"message 2 has a part of type {kind!r}"
    assert "reasoning_content" in refused.hint


def test_the_same_system_message_twice_is_one() -> None:
    record = {"messages": [SYSTEM, USER, ANSWER], "system": "Be kind."}
    assert read("chat", record) == Chat([SYSTEM, USER, ANSWER])


def test_messages_of_a_prompt_are_context() -> None:
    found = read("prompt", {"prompt": [*EARLIER, USER], "completion": [ANSWER]})
    assert found == Chat([*EARLIER, USER, ANSWER], None, frozenset({1}))
    # A completion that is the whole conversation repeats the prompt.
    whole = read("prompt", {"prompt": [*EARLIER, USER], "completion": [*EARLIER, USER, ANSWER]})
    assert whole == found
    assert read("prompt", {"prompt": "q", "completion": [USER, ANSWER]}) == IS["chat"]
    assert read("prompt", {"prompt": [USER], "completion": "a"}) == IS["chat"]
    history = read("prompt", {"prompt": "q", "completion": "a", "history": EARLIER})
    assert history == Chat([*EARLIER, USER, ANSWER])


#: Pairs in every layout that data sets have.
LAYOUTS: list[dict[str, Any]] = [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"prompt": "q", "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
    {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]},
    {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
    {"messages": [USER, ANSWER], "chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
    {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "b"}},
    {"instruction": "q", "input": "", "chosen": "a", "rejected": "b"},
    {"question": "q", "chosen": "a", "rejected": "b"},
    {"messages": [USER, ANSWER], "rejected_response": "b"},
    {"messages": [USER, ANSWER], "rejected_messages": [USER, WORSE]},
    {"query": "q", "response": "a", "rejected_response": "b"},
    {
        "input": {"messages": [USER], "tools": [], "parallel_tool_calls": True},
        "preferred_output": [ANSWER],
        "non_preferred_output": [WORSE],
    },
]


@pytest.mark.parametrize("record", LAYOUTS, ids=lambda record: "-".join(record))
@pytest.mark.parametrize("as_text", [False, True], ids=["objects", "json"])
def test_pairs_are_known_and_their_better_answer_can_be_learned(
    record: dict[str, Any], as_text: bool
) -> None:
    given = as_json_text(record) if as_text else record
    assert detect([given], {}) == "preference"
    assert read("preference", given) == IS["preference"]
    hint = how_to_learn_chosen(given)
    command = re.fullmatch(r"to learn .*: data=(\w+)( 'data.columns={(.*)}')?", hint)
    assert command
    mapped = (command[3] or "").split(", ")
    found = read(command[1], given, dict(part.split(": ") for part in mapped if part))
    said = found.completion if isinstance(found, Pair) else found.messages[-1]["content"]
    assert said == "a"


def as_json_text(record: dict[str, Any]) -> dict[str, Any]:
    """The record as a table of texts holds it."""
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in record.items()
    }


def test_whole_texts_without_a_prompt_can_be_learned_as_documents() -> None:
    record = {"chosen": "Human: q Assistant: a", "rejected": "Human: q Assistant: b"}
    hint = how_to_learn_chosen(record)
    assert "data=text objective=text 'data.columns={text: chosen}'" in hint
    assert read("text", record, {"text": "chosen"}) == Text("Human: q Assistant: a")


LISTS = [
    *[case[2] for case in read_cases() if case[1] not in ("text", "classification")],
    {"prompt": [USER], "completion": [ANSWER]},
    {"messages": [USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": {"x": None}}]}]},
]


@pytest.mark.parametrize("record", LISTS, ids=range(len(LISTS)))
def test_json_text_is_what_it_says(record: dict[str, Any]) -> None:
    name = detect([record], {})
    text = as_json_text(record)
    assert detect([text], {}) == name
    assert read(name, text) == read(name, record)
    assert not isinstance(read(name, text), BadRecord)


def test_members_of_turns_and_tools_may_be_json_text() -> None:
    # As the type `Json` of the library `datasets` holds them.
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    plain = {"messages": [USER, {**ANSWER, "tool_calls": [call]}], "tools": [tool]}
    texts = [
        {"messages": [USER, {**ANSWER, "tool_calls": [json.dumps(call)]}]},
        {"messages": [USER, {**ANSWER, "tool_calls": json.dumps([call])}]},
        {
            "messages": [
                USER,
                {**ANSWER, "tool_calls": [{**call, "function": json.dumps(call["function"])}]},
            ]
        },
    ]
    for text in texts:
        assert read("chat", text | {"tools": [json.dumps(tool)]}) == read("chat", plain)
    parts = {"name": "f", "parameters": json.dumps({"type": "object"})}
    for written in (parts, json.dumps(tool["function"])):
        tools = [{"type": "function", "function": written}]
        assert read("chat", plain | {"tools": tools}) == read("chat", plain)


def test_a_text_that_happens_to_be_json_stays_a_text() -> None:
    for text in ('{"a": 1}', "[1, 2]", '[{"role": "admin"}]', '["q"]', "[", "{'role': 1}"):
        assert read("prompt", {"prompt": text, "completion": text}) == Pair(text, text)
        assert read("text", {"text": text, "history": text}) == Text(text)
    talk = json.dumps([USER, ANSWER])
    asked = {"instruction": "Shorten it.", "input": talk, "output": "a"}
    assert read("alpaca", asked) == Pair(f"Shorten it.\n\n{talk}", "a")
    assert read("prompt", {"prompt": talk, "completion": "a"}) == Pair(talk, "a")


@pytest.mark.parametrize(
    ("record", "found", "hint"),
    [
        ({"messages": str([USER, ANSWER])}, "field 'messages' is no JSON", "Python's notation"),
        ({"messages": '[{"role"'}, "field 'messages' is no JSON", "json.dumps"),
        ({"messages": '"hi"'}, "field 'messages' is text, not a list", '{"messages": [{"role"'),
        ({"messages": {"0": USER}}, "field 'messages' is an object", '{"messages": [{"role"'),
        ({"conversations": "x"}, "field 'conversations' is no JSON", "json.dumps"),
        ({"conversations": []}, "field 'conversations' is an empty list", '"from": "human"'),
        ({"dialogue": [USER, ANSWER]}, "no known format", "data.columns={messages: dialogue}"),
        ({"input_ids": [1], "labels": [1]}, "no known format", "give the texts"),
        ({"segments": [{"label": True, "text": "a"}]}, "no known format", "write turns"),
        ({"image": "a.png", "label": 1}, "no known format", "only text is trained on"),
        ({"prompt": "q", "completions": ["a"], "labels": [True]}, "no known", "step by step"),
        (
            {"prompt": "q"},
            "no known format has the fields of this record: 'prompt'",
            "data.columns",
        ),
    ],
)
def test_a_layout_that_is_not_known_is_explained(
    record: dict[str, Any], found: str, hint: str
) -> None:
    with pytest.raises(BadRecord) as caught:
        detect([record], {})
    assert found in caught.value.found
    assert hint in caught.value.hint


def test_what_a_hint_maps_is_read() -> None:
    assert read("chat", {"dialogue": [USER, ANSWER]}, {"messages": "dialogue"}) == IS["chat"]
    record = {"question": "q", "context": "it", "answer": "a"}
    columns = {"prompt": "question", "completion": "answer"}
    refused = read("prompt", record, columns)
    assert "field 'context' is not read" in refused.found
    assert "data=alpaca reads it as its input" in refused.hint
    columns = {"instruction": "question", "input": "context", "output": "answer"}
    assert read("alpaca", record, columns) == Pair("q\n\nit", "a")


def table(fields: tuple[Field, ...]) -> str:
    """The fields as docs/data.md shows them."""
    rows = []
    for use in Use:
        for field in (field for field in fields if field.use is use):
            names = ", ".join(f"`{name}`" for name in field.names)
            where = "every" if field.formats == EVERY else ", ".join(field.formats)
            rows.append(f"| {names} | {where} | {use.value}: {field.what} |")
    return "\n".join(rows)


def test_the_documentation_lists_every_field() -> None:
    page = (Path(__file__).parents[1] / "docs" / "data.md").read_text("utf-8")
    assert table(FIELDS) in page
    assert table(TURN_FIELDS) in page


@pytest.mark.parametrize(
    ("name", "record", "found"),
    [
        ("prompt", {"prompt": "p", "completion": "c", "response": "d"}, "say different things"),
        ("prompt", {"prompt": "p", "question": "q", "completion": "c"}, "say different things"),
        ("alpaca", {"instruction": "i", "output": "a", "response": "b"}, "say different things"),
        ("alpaca", {"instruction": "i", "query": "q", "context": "r", "output": "a"}, "different"),
        ("chat", {"messages": [USER, {**ANSWER, "value": "other"}]}, "say different things"),
        ("chat", {"messages": [USER, ANSWER], "conversations": [HUMAN]}, "say different things"),
        ("chat", {"messages": [USER, {**ANSWER, **CALLED}]}, "tool_calls and a function_call"),
        ("chat", {"messages": [USER, ANSWER], "functions": {"name": "f"}}, "'functions' is an obj"),
        (
            "chat",
            {"messages": [USER, ANSWER], "functions": [{"name": "f"}], "tools": [TOOL]},
            "'tools' and 'functions' are both given",
        ),
        (
            "chat",
            {"messages": [USER, {"role": "tool", "content": "a", "tool_call_id": ["c"]}, ANSWER]},
            "the tool_call_id of message 2 is a list",
        ),
        ("chat", {"messages": [USER, {**ANSWER, "reasoning_content": ["x"]}]}, "not text"),
        ("chat", {"messages": [USER, {**ANSWER, "thinking": {"x": 1}}]}, "not text"),
        ("chat", {"messages": [USER, ANSWER], "reasoning": "why"}, "thoughts before the answer"),
        ("chat", {"messages": [{"role": "user", "tool_calls": [{"name": "f"}]}, ANSWER]}, "(user)"),
    ],
)
def test_of_two_things_said_none_is_lost(name: str, record: dict[str, Any], found: str) -> None:
    refused = read(name, record)
    assert isinstance(refused, BadRecord)
    assert found in refused.found


def test_two_names_of_one_thing_may_say_the_same() -> None:
    both = {"prompt": "", "query": "q", "completion": "a", "response": "a"}
    assert read("prompt", both) == IS["prompt"]
    asked = json.dumps([USER])
    assert read("prompt", {"prompt": asked, "completion": "a"}).messages == [USER, ANSWER]
    about = {"instruction": "Say it in French", "query": "Good day", "output": "Bonjour"}
    assert read("alpaca", about).prompt == "Say it in French\n\nGood day"


def test_the_better_answer_of_an_instruction_with_an_input_is_learned_as_hinted() -> None:
    pair = {"instruction": "Sum up", "input": "long text", "chosen": "c", "rejected": "r"}
    hint = how_to_learn_chosen(pair)
    assert "data=alpaca 'data.columns={output: chosen}'" in hint
    found = read("alpaca", pair, {"output": "chosen"})
    assert (found.prompt, found.completion) == ("Sum up\n\nlong text", "c")


@pytest.mark.parametrize(
    ("label", "weight"), [(1, 1), (-1, 0), ("False ", 0), ("good", 1), ("Rejected", 0), (True, 1)]
)
def test_verdicts_of_every_kind_are_weights_as_hinted(label: Any, weight: float) -> None:
    reader = Reader("prompt", {"weight": "label"})
    assert reader.read({**PLAIN["prompt"], "label": label}) == (IS["prompt"], weight)


def test_what_is_empty_beside_what_is_given_hides_nothing() -> None:
    """Merged tables write "" and [] for what is not there."""
    spoken = {"from": "gpt", "value": "a", "role": None, "content": ""}
    assert read("sharegpt", {"conversations": [HUMAN, spoken]}) == IS["sharegpt"]
    called = {"role": "assistant", "content": "a", "tool_calls": [], "function_call": {"name": "f"}}
    found = read("chat", {"messages": [USER, called]})
    assert [call["function"]["name"] for call in found.messages[1]["tool_calls"]] == ["f"]
    same = {"messages": [USER, ANSWER], "conversations": [HUMAN, GPT]}
    assert read("chat", same) == IS["chat"]
