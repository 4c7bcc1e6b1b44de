"""The check of training files."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.api import validate
from launcher.api.validate import FileFault, fault_of
from launcher.data.formats.chat import ChatFormat

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}
CALL = {"type": "function", "id": "c", "function": {"name": "f", "arguments": "{}"}}


def line(*messages: object, **beside: object) -> bytes:
    return json.dumps({"messages": messages, **beside}).encode()


@pytest.mark.parametrize(
    "good",
    [
        line(USER, ANSWER),
        line({"role": "system", "content": "Be short."}, USER, ANSWER),
        line({"role": "developer", "content": "Be short."}, USER, ANSWER),
        line(USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}),
        line(USER, {"role": "assistant", "tool_calls": [CALL]}, tools=[{"type": "function"}]),
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
    ],
)
def test_lines_as_openai_writes_them_are_good(good):
    assert fault_of(good) == ""
    ChatFormat().read(json.loads(good))


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
        (line(USER, {"role": "assistant", "function_call": {}}), "tool_calls"),
        (line(USER, ANSWER, functions={}), "functions"),
        (line({**USER, "name": 7}, ANSWER), "name"),
        (line(USER, ANSWER, tools={}), "tools"),
        (line(USER, ANSWER, parallel_tool_calls="no"), "parallel_tool_calls"),
        (line({"role": "user", "content": [{"type": "image_url"}]}, ANSWER), "content"),
    ],
)
def test_other_lines_are_told_apart(bad, found):
    assert found in fault_of(bad)


def keep(content: bytes, path: Path, least: int = 10, line_bytes: int = 1 << 20) -> int:
    return validate.keep(io.BytesIO(content), path, "training", least=least, line_bytes=line_bytes)


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
        (b"x" * (2 << 20), "invalid_file_format", "Example 1 (line 1) is too long"),
    ],
)
def test_what_is_not_leaves_nothing(tmp_path, content, code, message):
    with pytest.raises(FileFault, match=r".") as caught:
        keep(content, tmp_path / "t.jsonl")
    assert caught.value.code == code
    assert message in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_memory_does_not_grow_with_the_file(tmp_path):
    one = line(USER, {**ANSWER, "content": "a" * 2000}) + b"\n"
    path = tmp_path / "big.jsonl"
    path.write_bytes(one * 5000)
    tracemalloc.start()
    with open(path, "rb") as content:
        validate.keep(content, tmp_path / "t.jsonl", "training", least=10, line_bytes=1 << 20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 << 20


@settings(max_examples=200, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["messages", "role", "content", "weight", "tools", "tool_calls"]),
                inner | st.sampled_from(["user", "assistant"]),
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_whatever_passes_can_be_trained_on(record):
    text = json.dumps(record).encode()
    if fault_of(text) == "":
        ChatFormat().read(json.loads(text))
