"""Turns of a conversation as chat templates take them, whatever tool wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.data.formats.base import BadRecord, Chat, as_text, kind, refuse
from launcher.data.formats.jsonfields import structure
from launcher.record_fields import (
    ANSWERS_BESIDE,
    FLAGS,
    OF_THE_CALLER,
    THOUGHT_FIELDS,
    is_given,
    refused_in_turn,
)

Message = dict[str, Any]

#: What speakers are called in data sets, and what chat templates call them.
ROLES = {
    "human": "user",
    "user": "user",
    "prompter": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "ai": "assistant",
    "function_call": "assistant",
    "tool_call": "assistant",
    "system": "system",
    "developer": "developer",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "function_response": "tool",
    "tool_response": "tool",
}
#: Speakers whose words are a call, as JSON (LLaMA-Factory, ms-swift).
_CALLERS = ("function_call", "tool_call")
SYSTEM_ROLES = ("system", "developer")
#: Members of a turn that has a speaker or words of its own.
_OWN = frozenset(("role", "from", "content", "value"))
_NOTHING_LEARNED = (
    "there is nothing to learn from this record: remove it, or set data.bad_records=skip"
)


@dataclass(slots=True)
class Turns:
    """Messages, and the indices of the assistant's that are context."""

    messages: list[Message] = field(default_factory=list)
    silent: set[int] = field(default_factory=set)

    def add(self, other: Turns, *, learned: bool = True) -> None:
        """Put other turns behind; as context, if they are not `learned`."""
        start = len(self.messages)
        self.messages += other.messages
        silent = other.silent if learned else set(other.answers)
        self.silent |= {start + i for i in silent}

    @property
    def answers(self) -> list[int]:
        """Indices of what the assistant says."""
        return [i for i, turn in enumerate(self.messages) if turn["role"] == "assistant"]


def conversation(record: Mapping[str, Any], turns: Turns) -> Chat:
    """A chat of turns and what stands beside them; `BadRecord` without a turn to learn."""
    turns = with_system(record, turns)
    beside = [name for name in ANSWERS_BESIDE if is_given(record.get(name))]
    if beside and turns.messages[-1]["role"] != "assistant":
        raise BadRecord(
            f"the conversation ends with {turns.messages[-1]['role']}, and its answer stands beside"
            f" it in {beside[0]!r}",
            hint="append it to the turns as the assistant's message; to leave it aside:"
            f" data.columns.{beside[0]}=",
        )
    if turns.silent >= set(turns.answers):
        roles = ", ".join(message["role"] for message in turns.messages[:8])
        found = "every assistant turn has weight 0, or an equal flag, or is part of the prompt"
        raise BadRecord(
            found if turns.silent else f"no assistant turn (roles: {roles})", hint=_NOTHING_LEARNED
        )
    options = template_options_of(record)
    return Chat(turns.messages, tools_of(record), frozenset(turns.silent), options)


def with_system(record: Mapping[str, Any], turns: Turns) -> Turns:
    """The turns behind the record's system message, unless it is among them."""
    system = system_of(record)
    if system is None:
        return turns
    own = next((turn for turn in turns.messages[:1] if turn["role"] in SYSTEM_ROLES), None)
    if own is None:
        found = Turns([{"role": "system", "content": system}])
        found.add(turns)
        return found
    if own.get("content") != system:
        raise BadRecord(
            "two system messages, one beside the turns and another in front of them",
            hint="keep one of them; to leave the one beside them aside: data.columns.system=",
        )
    return turns


def system_of(record: Mapping[str, Any]) -> str | None:
    """The system message beside what is said, under either of its names."""
    given = {name: record[name] for name in ("system", "system_prompt") if record.get(name)}
    for name, value in given.items():
        if not isinstance(value, str):
            raise BadRecord(
                f"field {name!r} is {kind(value)}, not text",
                hint=f"write it as text; to leave it aside: data.columns.{name}=",
            )
    texts = {text for text in given.values() if text.strip()}
    if len(texts) > 1:
        raise BadRecord(
            "'system' and 'system_prompt' say different things",
            hint="to leave one aside: data.columns.system_prompt=",
        )
    return next(iter(texts), None)


def template_options_of(record: Mapping[str, Any]) -> Message:
    """Variables of the chat template that a record sets; null is none."""
    raw = record.get("chat_template_kwargs")
    if not is_given(raw):
        return {}
    if not isinstance(raw, dict):
        raise BadRecord(
            f"field 'chat_template_kwargs' is {kind(raw)}, not an object",
            hint='write {"enable_thinking": false}, also as JSON text; to leave it aside: '
            "data.columns.chat_template_kwargs=",
        )
    own = sorted(OF_THE_CALLER.intersection(raw))
    if own:
        raise BadRecord(
            f"'chat_template_kwargs' sets {own[0]!r}, which is no variable of a template's own",
            hint="write tools and messages beside it, and leave the rest out; to leave all of it "
            "aside: data.columns.chat_template_kwargs=",
        )
    return _present(raw)


def read_history(raw: Any) -> Turns:
    """Earlier turns: pairs [user, assistant], or messages."""
    if not is_given(raw):
        return Turns()
    if isinstance(raw, list) and all(isinstance(turn, dict) for turn in raw):
        return read_turns(raw, "history")
    found = Turns()
    for number, pair in enumerate(raw if isinstance(raw, list) else [raw], 1):
        is_pair = isinstance(pair, list) and len(pair) == 2
        if not is_pair or not all(isinstance(said, str) and said.strip() for said in pair):
            raise BadRecord(
                f"turn {number} of 'history' is no pair of texts",
                hint='write "history": [["user\'s words", "assistant\'s words"], ...], '
                "or leave it aside with data.columns.history=",
            )
        found.messages += [
            {"role": "user", "content": pair[0]},
            {"role": "assistant", "content": pair[1]},
        ]
    return found


def read_turns(raw: Any, name: str) -> Turns:
    """Checked turns of field `name`; `BadRecord` for what is none."""
    if not isinstance(raw, list) or not raw:
        found = "an empty list" if raw == [] else kind(raw)
        example = '{"from": "human", "value": "..."}'
        if "conversation" not in name:
            example = '{"role": "user", "content": "..."}'
        raise BadRecord(
            f"field {name!r} is {found}, not a list of messages",
            hint=f'write {{"{name}": [{example}, ...]}}',
        )
    turns = Turns()
    for number, turn in enumerate(_single(raw), 1):
        if _is_plain(turn):  # most are, and the rest of this is far slower
            turns.messages.append(dict(turn))
            continue
        message = _message(turn, number)
        if _is_context(turn, message["role"], number):
            turns.silent.add(len(turns.messages))
        turns.messages.append(message)
    return turns


def _is_plain(turn: Any) -> bool:
    """Whether a turn is what a template takes as it is: a role and a text."""
    return (
        isinstance(turn, dict)
        and len(turn) == 2
        and turn.get("role") in ("system", "user", "assistant")
        and isinstance(turn.get("content"), str)
    )


def _single(raw: Sequence[Any]) -> Iterator[Any]:
    """One turn after the other, where some hold what both speakers say (ms-swift)."""
    for turn in raw:
        if not isinstance(turn, dict) or not _OWN.isdisjoint(turn):
            yield turn
            continue
        said = {name: text for name, text in turn.items() if name in ROLES and text is not None}
        asked = [name for name in said if ROLES[name] != "assistant"]
        answered = [name for name in said if ROLES[name] == "assistant"]
        if len(asked) != 1 or len(answered) != 1:
            yield turn
            continue
        rest = {name: value for name, value in turn.items() if name not in said}
        yield {"role": ROLES[asked[0]], "content": said[asked[0]]}
        yield {**rest, "role": "assistant", "content": said[answered[0]]}


def _content(turn: Mapping[str, Any], number: int) -> Any:
    content, value = turn.get("content"), turn.get("value")
    if is_given(content) and is_given(value) and content != value:
        raise BadRecord(
            f"'content' and 'value' of message {number} say different things",
            hint="to leave one aside: data.columns.value=",
        )
    return content if is_given(content) or value is None else value


def _message(raw: Any, number: int) -> Message:
    if not isinstance(raw, dict):
        raise BadRecord(
            f"message {number} is {kind(raw)}, not an object",
            hint='write {"role": "user", "content": "..."}',
        )
    speaker, role = raw.get("from"), raw.get("role")
    if role is None and speaker is not None:
        role = ROLES.get(speaker.lower()) if isinstance(speaker, str) else None
        if role is None:
            raise BadRecord(
                f"turn {number} is from {speaker!r}, who is not known",
                hint=f"known are {', '.join(ROLES)}; rename the speaker",
            )
    elif isinstance(role, str):
        speaker, role = role, ROLES.get(role.lower(), role)
    else:
        raise BadRecord(f"message {number} has no role", hint="add a role: user or assistant")
    refuse(refused_in_turn(raw), f"{{!r}} in message {number}")
    content, calls = _content(raw, number), raw.get("tool_calls")
    if is_given(call := raw.get("function_call")):
        if is_given(calls):
            raise BadRecord(
                f"message {number} has tool_calls and a function_call",
                hint="to leave one aside: data.columns.function_call=",
            )
        calls = [{"type": "function", "function": call}]
    if isinstance(raw.get("tool_call_id"), (list, dict)):
        raise BadRecord(
            f"the tool_call_id of message {number} is {kind(raw['tool_call_id'])}, not text",
            hint="write the id of the call that it is the result of",
        )
    if str(speaker).lower() in _CALLERS and not is_given(calls):
        content, calls = None, content
    calls = _calls(calls, number)
    refusal = raw.get("refusal")
    if is_given(refusal):
        if content not in (None, ""):
            raise BadRecord(
                f"message {number} has a content and a refusal",
                hint="keep what the assistant is to say",
            )
        content = refusal
    only_calls = content is None and calls and role == "assistant"
    if not (isinstance(content, (str, list)) or only_calls):
        hint = "write it as a JSON string"
        if content is None:
            hint = "only an assistant message with tool_calls may go without content"
        elif isinstance(content, bytes):
            hint = as_text(content)
        raise BadRecord(
            f"the content of message {number} ({role}) is {kind(content)}, not text", hint=hint
        )
    for name in THOUGHT_FIELDS:
        if not isinstance(raw.get(name), (str, type(None))):
            raise BadRecord(
                f"{name!r} of message {number} is {kind(raw[name])}, not text",
                hint=f"write it as text; to train as if it were not there: data.columns.{name}=",
            )
    # Absent and null mean the same to people, not to templates.
    message = {name: value for name, value in raw.items() if value is not None}
    for name in ("from", "value", "function_call", "tool_calls", "refusal", "content", *FLAGS):
        message.pop(name, None)
    message = {"role": role, **{name: message[name] for name in message if name != "role"}}
    if content is not None:
        text = content if isinstance(content, str) else _joined(content, number)
        message = {"role": message.pop("role"), "content": text, **message}
    if calls:
        message["tool_calls"] = calls
    return message


def _is_context(raw: Mapping[str, Any], role: str, number: int) -> bool:
    """Whether what a turn says is not learned, by any of its flags."""
    given = {name: raw[name] for name in FLAGS if raw.get(name) is not None}
    for name, value in given.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise BadRecord(
                f"message {number} has {name} {value!r}",
                hint="use 0 or 1; a weight beside the messages, which scales the record, may be "
                "any",
            )
    if role != "assistant":
        wished = next((name for name in ("train", "training") if given.get(name)), None)
        if wished:
            raise BadRecord(
                f"message {number} ({role}) has {wished} true",
                hint="only what the assistant says is learned: set it to false, or remove it",
            )
        return False
    return any(value == 0 for value in given.values())


def _joined(parts: Sequence[Any], number: int) -> str:
    return "".join(_text_part(part, number) for part in parts)


def _text_part(part: Any, number: int) -> str:
    """Text of one part of a message's content; what is no text cannot be trained on."""
    name = part.get("type") if isinstance(part, dict) else None
    if not isinstance(name, str):
        raise BadRecord(
            f"a part of message {number} is {kind(part)} without a type",
            hint='write {"type": "text", "text": "..."}',
        )
    if name in ("thinking", "reasoning"):
        raise BadRecord(
            f"message {number} has a part of type {name!r}",
            hint="write the thoughts as text in reasoning_content beside the content, or between "
            "<think> and </think> (for Mistral's models [THINK] and [/THINK]) in front of it",
        )
    if name not in ("text", "refusal"):
        raise BadRecord(
            f"message {number} has a part of type {name!r}",
            hint="only parts of type 'text' can be trained on: remove the record, or set "
            "data.bad_records=skip",
        )
    if not isinstance(part.get(name), str):
        raise BadRecord(
            f"the text of a part of message {number} is {kind(part.get(name))}",
            hint='write {"type": "text", "text": "..."}',
        )
    return str(part[name])


def _calls(raw: Any, number: int) -> list[Message]:
    """Calls of tools; none, where there are none, however that is written."""
    if isinstance(raw, str) and raw.strip():
        raw = structure(raw, f"turn {number}: the function call is")
    if not is_given(raw):
        return []
    if isinstance(raw, dict):
        raw = [raw]
    if not isinstance(raw, list):
        raise BadRecord(
            f"the tool_calls of message {number} are {kind(raw)}, not a list",
            hint='write [{"type": "function", "function": {"name": "...", "arguments": {...}}}]',
        )
    return [_call(call, number) for call in raw]


def _call(raw: Any, number: int) -> Message:
    if isinstance(raw, str):
        raw = structure(raw, f"message {number}: a tool call is")
    function = raw.get("function", raw) if isinstance(raw, dict) else None
    if isinstance(function, str) and "name" not in raw:
        function = structure(function, f"message {number}: a tool call is")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise BadRecord(
            f"message {number} has a tool call without a function name",
            hint='write {"type": "function", "function": {"name": "...", "arguments": {...}}}',
        )
    arguments = function.get("arguments")
    where = f"message {number}: the arguments of {function['name']!r} are"
    if isinstance(arguments, str):
        # OpenAI writes arguments as a JSON string; chat templates expect the object.
        arguments = structure(arguments, where) if arguments.strip() else {}
    if arguments is not None and not isinstance(arguments, dict):
        raise BadRecord(
            f"{where} {kind(arguments)}, not an object", hint="write each with its name"
        )
    function = {**_present(function), "arguments": arguments or {}}
    return {**_present(raw), "function": function} if "function" in raw else {"function": function}


def _present(members: Mapping[str, Any]) -> Message:
    return {name: value for name, value in members.items() if value is not None}


def tools_of(record: Mapping[str, Any]) -> list[Message] | None:
    """Descriptions of tools for the chat template; `BadRecord` unless they are objects."""
    raw, functions = record.get("tools"), record.get("functions")
    if is_given(functions):
        if is_given(raw):
            raise BadRecord(
                "'tools' and 'functions' are both given",
                hint="to leave one aside: data.columns.functions=",
            )
        if not isinstance(functions, list):
            raise BadRecord(
                f"field 'functions' is {kind(functions)}, not a list of objects", hint=_TOOLS
            )
        raw = [{"type": "function", "function": function} for function in functions]
    if not is_given(raw):
        return None
    if not isinstance(raw, list):
        raise BadRecord(f"field 'tools' is {kind(raw)}, not a list of objects", hint=_TOOLS)
    return [_tool(tool) for tool in raw]


_TOOLS = (
    'write [{"type": "function", "function": {"name": "...", "parameters": {...}}}], also as '
    "JSON text"
)


def _tool(raw: Any) -> Message:
    if isinstance(raw, str):
        raw = structure(raw, "one of the tools is")
    if not isinstance(raw, dict):
        raise BadRecord(f"one of the tools is {kind(raw)}, not an object", hint=_TOOLS)
    tool = _present(raw)
    if isinstance(function := tool.get("function"), str):
        tool["function"] = function = structure(function, "one of the tools is")
    if isinstance(function, dict):
        tool["function"] = _schema(function)
    return _schema(tool)


def _schema(function: Mapping[str, Any]) -> Message:
    """A function whose parameters are an object; nulls in it are the user's own."""
    found = _present(function)
    if isinstance(parameters := found.get("parameters"), str):
        found["parameters"] = structure(parameters, "the parameters of a tool are")
    return found
