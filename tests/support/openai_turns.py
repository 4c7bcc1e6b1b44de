"""Messages as OpenAI writes them, and others that are near."""

from hypothesis import strategies as st

from launcher.record_fields import TURN_FIELDS

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CALL = {"type": "function", "id": "c", "function": {"name": "f", "arguments": "{}"}}

VALUES = st.sampled_from(
    [
        *(None, "", 0, 1, True, False, 0.5, -1, "x", "[]", "[1]", [], {}, ["x"], {"x": 1}),
        [{"type": "text", "text": "a"}],
        [{"type": "refusal", "refusal": "a"}],
    ]
)
CALLS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.just("c"),
        "name": VALUES,
        "function": VALUES
        | st.fixed_dictionaries(
            {"name": st.sampled_from(["f", 1])},
            optional={
                "arguments": st.sampled_from(["{}", "[1]", {}, "", None, '{"a": 1, "a": 2}'])
            },
        ),
    },
)
TURNS = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "function", "developer"])},
    optional={
        "content": VALUES,
        **{name: VALUES for field in TURN_FIELDS for name in field.names if name != "role"},
        "tool_calls": VALUES | st.lists(CALLS, max_size=2),
        "function_call": VALUES | CALLS,
    },
)
