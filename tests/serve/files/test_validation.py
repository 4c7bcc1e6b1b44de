"""The check of training files."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.data.formats import BadRecord, Reader
from launcher.record_fields import FIELDS, TURN_FIELDS, Field, Use
from launcher.serve.files import validation
from launcher.serve.files.conversations import CONVERSATIONS
from launcher.serve.files.unread_members import Unread
from launcher.serve.files.validation import FileFault
from support.draws import examples
from support.openai_turns import ANSWER, CALL, CALLS, TOOL, TURNS, USER, VALUES


def fault_of(line: bytes) -> str:
    return validation.fault_of(line, CONVERSATIONS)


def arguments(text: str) -> dict[str, object]:
    """An answer that calls a tool with these."""
    call = {"type": "function", "function": {"name": "f", "arguments": text}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def read(record: object) -> object:
    """What the preparation of a run makes of a record."""
    found = Reader("chat", {}).read(record)
    return found if isinstance(found, BadRecord) else found[0]


def line(*messages: object, **beside: object) -> bytes:
    return json.dumps({"messages": messages, **beside}).encode()


@pytest.mark.parametrize(
    "good",
    [
        line(USER, ANSWER),
        line({"role": "system", "content": "Be short."}, USER, ANSWER),
        line({"role": "developer", "content": "Be short."}, USER, ANSWER),
        line(USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}),
        line(USER, {"role": "assistant", "tool_calls": [CALL]}, tools=[TOOL]),
        line({**USER, "name": "Ann"}, ANSWER, parallel_tool_calls=False),
        line({"role": "user", "content": [{"type": "text", "text": "a"}]}, ANSWER),
        line({**USER, "name": None, "weight": None}, {**ANSWER, "weight": None}),
        line(
            USER,
            {"role": "assistant", "content": None, "function_call": CALL["function"]},
            {"role": "function", "name": "f", "content": "7"},
            ANSWER,
            functions=[{"name": "f", "parameters": {}}],
        ),
        line(USER, {"role": "assistant", "content": None, "refusal": "No.", "audio": None}),
        line(USER, {**ANSWER, "content": [{"type": "refusal", "refusal": "No."}]}),
        line(USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}),
        line(USER, {**ANSWER, "tool_calls": [], "function_call": None, "refusal": None}),
        line(USER, ANSWER, images=None, response_format={}, id=7, metadata={"images": 1}),
        line(USER, {**ANSWER, "reasoning_content": "It is so.", "train": True}),
        line(USER, ANSWER, chat_template_kwargs={"enable_thinking": False}, weight=2.5),
    ],
)
def test_lines_as_openai_writes_them_are_good(good):
    assert fault_of(good) == ""
    assert not isinstance(read(json.loads(good)), BadRecord)


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (b"{", "not valid JSON"),
        (b"\xff\xfe", "UTF-8"),
        (b"[1]", "not a JSON object"),
        (b'{"messages": NaN}', "not valid JSON"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep"),
        (b'{"a": ' + b"[" * 80 + b"]" * 80 + b"}", "deep"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "UTF-8"),
        (b"{}", 'no list "messages"'),
        (b'{"input": {}, "preferred_output": []}', '"method": {"type": "dpo"}'),
        (line(), 'no list "messages"'),
        (line("a"), "message 1: it is not an object"),
        (line(USER), "no message from the assistant"),
        (line(USER, {**ANSWER, "weight": 0}), "nothing can be learned"),
        (line(USER, {**ANSWER, "weight": 0.5}), "weight"),
        (line(USER, {**ANSWER, "weight": True}), "weight"),
        (line({**USER, "weight": 1}, ANSWER), "weight"),
        (line({"role": "robot", "content": "a"}, ANSWER), "role"),
        (line({"role": ["user"], "content": "a"}, ANSWER), "role"),
        (line(USER, {"role": "assistant"}), "content"),
        (line(USER, {"role": "assistant", "content": 7}), "content"),
        (line(USER, {"role": "assistant", "tool_calls": [{}]}), "tool_calls"),
        (line(USER, {"role": "assistant", "function_call": {}}), "content"),
        (line(USER, {"role": "assistant", "function_call": {"name": 7}}), "tool_calls"),
        (line(USER, ANSWER, functions={}), "functions"),
        (line({**USER, "name": 7}, ANSWER), "name"),
        (line(USER, ANSWER, tools={}), "tools"),
        (line(USER, ANSWER, parallel_tool_calls="no"), "parallel_tool_calls"),
        (line({"role": "user", "content": [{"type": "image_url"}]}, ANSWER), "content"),
        (b'{"messages": [], "messages": []}', 'has the key "messages" twice in one object'),
        (line(USER, {**ANSWER, "weight": 0}, {**ANSWER, "train": False}), "nothing can be learned"),
        (line(USER, {**ANSWER, "loss": 0.5}), 'a "loss" is 0 or 1'),
        (line({**USER, "train": True}, ANSWER), 'its "train" is true'),
        (line(USER, {**ANSWER, "thinking": ["x"]}), 'its "thinking" is not text'),
        (line(USER, {**ANSWER, "refusal": "No."}), '"content" and a "refusal"'),
        (line({**USER, "refusal": "No."}, ANSWER), "only for the assistant"),
        (line(USER, {**ANSWER, "value": "b"}), '"content" and "value"'),
        (line(USER, ANSWER, USER, response="a"), 'its answer in "response"'),
        (line(USER, ANSWER, system=["x"]), 'a "system" beside the messages'),
        (line(USER, ANSWER, system="x", system_prompt="y"), "two system messages"),
        (line({"role": "system", "content": "x"}, USER, ANSWER, system="y"), "two system"),
        (line({"role": "system", "value": "x"}, USER, ANSWER, system="y"), "two system"),
        (line(USER, ANSWER, weight=-1), 'a "weight" beside the messages'),
        (line(USER, ANSWER, tools=[{"function": "f"}]), "tools"),
        (line(USER, ANSWER, chat_template_kwargs=["x"]), '"chat_template_kwargs" that is no'),
        (line(USER, ANSWER, chat_template_kwargs={"tokenize": True}), 'has "tokenize" in'),
        (
            line(
                USER,
                {
                    "role": "assistant",
                    "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1, "a": 2}'}}],
                },
            ),
            "tool_calls",
        ),
    ],
)
def test_other_lines_are_told_apart(bad, found):
    assert found in fault_of(bad)


def refused(fields: tuple[Field, ...]) -> list[str]:
    chosen = (field for field in fields if field.use is Use.refused and "chat" in field.formats)
    return [name for field in chosen for name in field.names]


@pytest.mark.parametrize("name", refused(FIELDS))
def test_a_field_that_training_refuses_is_named_before(name):
    bad = line(USER, ANSWER, **{name: True})
    assert f'has "{name}", which is not read: ' in fault_of(bad)
    assert isinstance(read(json.loads(bad)), BadRecord)
    assert fault_of(line(USER, ANSWER, **{name: None})) == ""


@pytest.mark.parametrize("name", refused(TURN_FIELDS))
def test_a_member_that_training_refuses_is_named_before(name):
    bad = line(USER, {**ANSWER, name: True})
    assert f'is wrong at message 2: its "{name}" is not read: ' in fault_of(bad)
    assert isinstance(read(json.loads(bad)), BadRecord)
    assert fault_of(line(USER, {**ANSWER, name: None})) == ""


def keep(content: bytes, path: Path, least: int = 10, line_bytes: int = 1 << 20) -> int:
    sent = io.BytesIO(content)
    return validation.keep(
        sent, path, "training", CONVERSATIONS, least=least, line_bytes=line_bytes
    )[0]


def test_what_is_good_is_kept_line_by_line(tmp_path):
    lines = [line(USER, {**ANSWER, "content": f"Because {n}."}) for n in range(12)]
    content = b"\xef\xbb\xbf" + b"\r\n\n".join(lines)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".t.jsonl.1.tmp").write_bytes(b"of one that was killed")
    assert keep(content, tmp_path / "a" / "t.jsonl") == 12
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["t.jsonl"]
    assert (tmp_path / "a" / "t.jsonl").read_bytes().split(b"\n") == [*lines, b""]


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (
            line(USER, ANSWER) + b"\n" + line(USER, ANSWER),
            "invalid_n_examples",
            "Training file has 2 example(s), but must have at least 10 examples",
        ),
        (b"", "invalid_n_examples", "Training file has 0 example(s)"),
        (
            line(USER, ANSWER) + b"\n\n" + line(USER),
            "invalid_file_format",
            "Invalid file format. Example 2 (line 3) has no message from the assistant.",
        ),
        (
            line(USER, ANSWER) + b"\n" + line(USER, ANSWER, images=["a.png"]),
            "invalid_file_format",
            'Example 2 (line 2) has "images", which is not read: what is seen or heard',
        ),
        (b"x" * (2 << 20), "invalid_file_format", "Example 1 (line 1) is too long"),
    ],
)
def test_what_is_not_leaves_nothing(tmp_path, content, code, message):
    with pytest.raises(FileFault, match=r".") as caught:
        keep(content, tmp_path / "t.jsonl")
    assert caught.value.code == code
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    one = line(USER, {**ANSWER, "content": "a" * 2000}) + b"\n"
    path = tmp_path / "big.jsonl"
    path.write_bytes(one * 5000)
    tracemalloc.start()
    with open(path, "rb") as content:
        validation.keep(
            content, tmp_path / "t.jsonl", "training", CONVERSATIONS, least=10, line_bytes=1 << 20
        )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20


BESIDE = sorted({name for field in FIELDS for name in field.names} | {"answer"})


@settings(max_examples=examples(500), deadline=None)
@given(
    beside=st.dictionaries(
        st.sampled_from(BESIDE), VALUES | st.lists(CALLS, max_size=1), max_size=2
    ),
    turns=st.lists(st.just(USER) | st.just(ANSWER) | TURNS, min_size=1, max_size=3),
)
def test_whatever_passes_can_be_trained_on(beside, turns):
    text = json.dumps({**beside, "messages": turns}).encode()
    if fault_of(text) == "":
        found = read(json.loads(text))
        assert not isinstance(found, BadRecord), found


def test_a_key_that_is_repeated_behind_many_is_found_at_once():
    many = ", ".join(f'"k{i}": 0' for i in range(300_000))
    assert 'the key "k299999" twice' in fault_of(f'{{{many}, "k299999": 1}}'.encode())


@pytest.mark.parametrize(
    ("bad", "found"),
    [
        (line(USER, {**ANSWER, "tool_calls": [CALL], "function_call": CALL["function"]}), "and a"),
        (
            line({"role": "tool", "content": "a", "tool_call_id": ["c"]}, USER, ANSWER),
            "tool_call_id",
        ),
        (line(USER, ANSWER, tools=[{}]), "with a name each"),
        (line(USER, ANSWER, tools=[TOOL], functions=[TOOL["function"]]), '"tools" and "functions"'),
        (line(USER, ANSWER, conversations=[USER]), '"messages" and "conversations"'),
        (line(USER, arguments('{"x": "\\ud800"}')), "tool_calls"),
        (line(USER, arguments('{"x": ' + "[" * 400 + "]" * 400 + "}")), "tool_calls"),
    ],
)
def test_what_training_cannot_read_is_refused_before(bad, found):
    assert found in fault_of(bad)


@pytest.mark.parametrize(
    "good",
    [
        line({**USER, "tool_calls": []}, arguments("null")),
        line({"role": "user", "content": "", "value": "Why?"}, {**ANSWER, "function_call": {}}),
        line({"role": "system", "content": [{"type": "text", "text": "x"}]}, ANSWER, system="x"),
    ],
)
def test_what_training_reads_is_not_refused_before(good):
    assert fault_of(good) == ""
    assert not isinstance(read(json.loads(good)), BadRecord)


def told(**beside: Any) -> str | None:
    """What is told of a file of one example."""
    turn = {"role": "assistant", "content": "b", **beside.pop("turn", {})}
    record = {"messages": [{"role": "user", "content": "a"}, turn], **beside}
    unread = Unread(CONVERSATIONS)
    assert validation.fault_of(json.dumps(record).encode(), CONVERSATIONS, 7, unread) == ""
    return unread.text("training")


@pytest.mark.parametrize(
    ("record", "found"),
    [
        ({"turn": {"wieght": 0}}, "'wieght' of a message (once, first in line 7, did you mean"),
        ({"turn": {"tool_cals": [CALL]}}, "'tool_cals' of a message"),
        ({"turn": {"reasonning_content": "x"}}, "did you mean 'reasoning_content'?"),
        ({"tool": [1]}, "'tool' of the example (once, first in line 7, did you mean 'tools'?)"),
        ({"paralel_tool_calls": False}, "did you mean 'parallel_tool_calls'?"),
        ({"id": 5}, "'id' of the example (once, first in line 7)"),
        ({"turn": {"content": [{"type": "text", "text": "b", "txt": "c"}]}}, "'txt' of a part"),
        ({"turn": {"tool_calls": [{**CALL, "ids": "1"}]}}, "'ids' of a call"),
        (
            {"turn": {"tool_calls": [{"function": {"name": "f", "argumets": '{"a": 1}'}}]}},
            "'argumets' of the function of a call (once, first in line 7, did you mean 'arguments'",
        ),
    ],
)
def test_a_member_that_nobody_reads_is_told(record: dict[str, Any], found: str) -> None:
    assert found in str(told(**record))


@pytest.mark.parametrize(
    "record",
    [
        {},
        {"tools": [], "id": None, "turn": {"audio": None, "annotations": [], "mood": ""}},
        {"weight": 0.5, "turn": {"weight": 1, "name": "x", "reasoning": "y"}},
        {"turn": {"tool_calls": [CALL]}, "parallel_tool_calls": False},
        {"system": "s", "text": "all", "score": 3, "prompt": "a", "chat_template_kwargs": {"x": 1}},
        {"turn": {"content": [{"type": "text", "text": "b"}], "from": "gpt", "loss": True}},
    ],
)
def test_what_is_known_or_says_nothing_is_not_told(record: dict[str, Any]) -> None:
    assert told(**record) is None


def test_of_many_unknown_members_a_few_are_told() -> None:
    unread = Unread(CONVERSATIONS)
    for number in range(1, 3001):
        record = {"messages": [{"role": "assistant", "content": "a", f"own{number}": 1}], "src": 2}
        unread.add(record, number)
    text = str(unread.text("validation"))
    assert text.startswith("The validation file has members that are not known: 'src' of the")
    assert "(3,000 times, first in line 1)" in text
    assert "; and 995 more." in text
    assert len(text) < 800
