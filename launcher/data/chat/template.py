"""A tokenizer's chat template at work: messages in, text out."""

from __future__ import annotations

import functools
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from launcher.core.errors import ConfigError
from launcher.data.chat.provenance import TAGS, in_tags
from launcher.data.formats.base import BadRecord
from launcher.record_fields import THOUGHT_FIELDS

Message = dict[str, Any]
Span = tuple[int, int]

_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
#: Where a template writes a mapping as Python does, it would rather have had JSON text.
_REPR = re.compile(r"\{'probe': ")
CALL_ID = "probe0000"  # some templates want nine characters
#: What most templates write for a control token, whether or not the tokenizer has it.
_MARKER = r"<[^<>\s]{1,40}>|\[[^\[\]\s]{1,40}\]"
#: A question and an answer that no template writes of itself.
_ASKED, _SAID = "\u00a7", "\u00b6"
SAMPLE: list[Message] = [
    {"role": "user", "content": _ASKED},
    {"role": "assistant", "content": _SAID},
]
_SYSTEM: Message = {"role": "system", "content": "\u2021"}
#: Tags around a thought at the beginning of a content.
TAGGED = re.compile(rf"\s*{in_tags('({begin})(.*?){end}')}\s*", re.DOTALL)

Render = Callable[[list[Message], list[Message] | None, bool], tuple[str, list[Span]]]


class ChatTemplate:
    """Renders conversations. `ConfigError` if the tokenizer has no template.

    `variables` are those that templates read beside the messages, such as `enable_thinking`.
    """

    def __init__(self, tokenizer: Any, variables: Mapping[str, Any] | None = None) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                "the tokenizer has no chat template, so conversations cannot be written as text",
                where="model.chat_template",
                hint="give a Jinja file with model.chat_template=FILE, use an instruction-tuned "
                "model's tokenizer, or train on plain text with data=text",
            )
        self._tokenizer = tokenizer
        self._variables = {**tokenizer.special_tokens_map, **(variables or {})}
        added = tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special} | {tokenizer.eos_token or ""}
        self.specials = tuple(sorted(special - {""}))
        """What can end a turn."""
        names = "|".join(map(re.escape, sorted(self.specials, key=len, reverse=True)))
        self.control = re.compile(f"{names}|{_MARKER}" if names else _MARKER)
        """Finds control tokens, also those that the tokenizer does not have."""

    def render(
        self, messages: list[Message], tools: list[Message] | None, prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """Rendered text, and the spans of its generation blocks (none if the template has no
        tags). Raises `BadRecord` if the template refuses the conversation.

        Without `prompt` the text ends with the last turn, also where a template opens the next one
        unasked.
        """
        text, spans = self._render(messages, tools, prompt)
        unsaid = "" if prompt else self._ending[1]
        if not unsaid or not text.endswith(unsaid):
            return text, spans
        end = len(text) - len(unsaid)
        return text[:end], [(begin, min(stop, end)) for begin, stop in spans if begin < end]

    def _render(
        self, messages: list[Message], tools: list[Message] | None, prompt: bool
    ) -> tuple[str, list[Span]]:
        from jinja2.exceptions import TemplateError

        try:
            return self._renderer(bool(tools))(messages, tools, prompt)
        except TemplateError as error:
            roles = ", ".join(str(message["role"]) for message in messages[:8])
            raise BadRecord(
                f"the chat template refuses the conversation: {error.message} (roles: {roles})",
                hint="change the record to the roles and order that the model was made for, give "
                "another template with model.chat_template, or set data.bad_records=skip",
            ) from error
        except (TypeError, ValueError, LookupError, AttributeError, RecursionError) as error:
            raise BadRecord(
                f"the chat template fails on the conversation: {type(error).__name__}: {error}",
                hint="compare the record's fields with what the template reads",
            ) from error

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one or two answers an object
    def _renderer(self, with_tools: bool) -> Render:
        source = self.source([{}] if with_tools else None)
        return _compiled(source, self._variables) or _by_library(source, self._variables)

    @property
    def opening(self) -> str:
        """The token that opens the user's next turn where nothing else ends an answer; "" where
        something does."""
        return self._ending[0]

    @functools.cached_property
    def _ending(self) -> tuple[str, str]:
        """`opening`, and what opens a turn that is not there behind a conversation's last answer.

        An answer ends with the first special token that follows it both where it is the last and
        where it is not. What is left of the last one's text opens a turn if a prompt or another
        turn begins like that.
        """
        for first in ([], [_SYSTEM]):  # some templates ask for a system message
            last, whole, prompt = (
                self._tried([*first, *messages], prompt)
                for messages, prompt in (
                    (SAMPLE, False),
                    ([*SAMPLE, *SAMPLE], False),
                    (SAMPLE[:1], True),
                )
            )
            if last.count(_SAID) == 1 and whole.count(_SAID) == 2:
                break
        else:
            return "", ""
        tail = last.split(_SAID)[1]
        before, after, _ = whole.split(_SAID)
        follow = after.split(_ASKED)[0]
        shared = self.agreement(tail, follow)
        found = self.control.finditer(tail, 0, shared)
        end = next((match.end() for match in found if match[0] in self.specials), 0)
        rest = tail[end:].lstrip()
        opened = (prompt.split(_ASKED)[-1], before.split(_ASKED)[-1], follow)
        unsaid = rest if rest and any(text.endswith(rest) for text in opened) else ""
        said = tail[: len(tail) - len(unsaid)]
        opens = self.control.match(follow, len(said))
        is_open = not said.strip() and follow.startswith(said)
        return opens[0] if is_open and opens and opens[0] in self.specials else "", unsaid

    def _tried(self, messages: list[Message], prompt: bool) -> str:
        try:
            return self._render(messages, None, prompt)[0]
        except BadRecord:
            return ""

    def agreement(self, one: str, other: str) -> int:
        """Characters with which both begin, without a part of a control token of either."""
        common = len(os.path.commonprefix([one, other]))
        for text in (one, other):
            for match in self.control.finditer(text):
                if match.start() < common < match.end():
                    common = match.start()
        return common

    def source(self, tools: list[Message] | None) -> str:
        """The Jinja text, which may be another one for conversations with tools."""
        return str(self._tokenizer.get_chat_template(None, tools))

    def with_roles(self, messages: list[Message]) -> list[Message]:
        """The messages with `system` for `developer`, unless the template knows that role."""
        if not any(message["role"] == "developer" for message in messages):
            return messages
        if self._knows_developers:
            return messages
        return [
            {**message, "role": "system"} if message["role"] == "developer" else message
            for message in messages
        ]

    @functools.cached_property
    def _knows_developers(self) -> bool:
        """Many templates write any role: one that names this one has a meaning for it."""
        named = re.search(r"""(['"])developer\1""", self.source(None))
        asked = [{**_SYSTEM, "role": "developer"}, *SAMPLE]
        return bool(named) and _SYSTEM["content"] in self._tried(asked, False)

    def fitted(
        self, messages: list[Message], tools: list[Message] | None, prompt: bool = False
    ) -> tuple[list[Message], str, list[Span]]:
        """The messages as the template takes them, and what `render` makes of them.

        A list of no calls is left out: templates ask whether it is there. Arguments of calls are
        objects or JSON text, and a call without content goes with none, "" or null: what the
        template is known to read comes first, what it does not refuse is taken. Raises `BadRecord`
        if it refuses all.
        """
        if not any("tool_calls" in message for message in messages):
            return messages, *self.render(messages, tools, prompt)
        messages = [_without_nothing(message) for message in messages]
        if not any("tool_calls" in message for message in messages):
            return messages, *self.render(messages, tools, prompt)
        as_text = self._wants_text(bool(tools))
        first: BadRecord | None = None
        for text in (as_text, not as_text):
            for content in (..., "", None):
                tried = [_with_calls(message, text, content) for message in messages]
                try:
                    return tried, *self.render(tried, tools, prompt)
                except BadRecord as error:
                    first = first or error
                if all("content" in message for message in messages):
                    break
        assert first is not None
        raise first

    def with_thoughts(
        self, messages: list[Message], tools: list[Message] | None, added: int = 0
    ) -> list[Message]:
        """The messages with each thought once, where the template reads it.

        A thought in tags at the beginning of a content goes into `reasoning_content` for a template
        that would write the tags as a part of the answer, and writes that field otherwise. Raises
        `BadRecord` for a message with two different thoughts. `added` messages are not the
        record's.
        """
        return [
            self._with_thought(message, bool(tools), i + 1 - added)
            if message["role"] == "assistant" and isinstance(message.get("content"), str)
            else message
            for i, message in enumerate(messages)
        ]

    def _with_thought(self, message: Message, with_tools: bool, number: int) -> Message:
        content = message["content"]
        found = TAGGED.match(content) if content.lstrip()[:1] in ("<", "[") else None
        if found is None:
            return message
        tag, thought = (text for text in found.groups() if text is not None)
        thought, rest = thought.strip(), content[found.end() :]
        fields = [name for name in THOUGHT_FIELDS if isinstance(message.get(name), str)]
        given = [name for name in fields if message[name].strip()]
        bare = {name: value for name, value in message.items() if name not in fields}
        for name in given if thought else ():
            if message[name].split() != thought.split():
                raise BadRecord(
                    f"{name!r} of message {number} and the thought in {tag} in its 'content' say "
                    "different things",
                    hint=f"keep one of them; to leave the field aside: data.columns.{name}=",
                )
        field, takes_tags = self._reading(tag, with_tools)
        if given:
            if field:
                return {**message, "content": rest}
            return bare if thought else message
        if takes_tags or not field:
            return bare
        return {**bare, "content": rest, **({field: thought} if thought else {})}

    @functools.lru_cache(maxsize=8)  # noqa: B019 - a few answers an object
    def _reading(self, tag: str, with_tools: bool) -> tuple[str | None, bool]:
        """The field from which the template writes thoughts, if any, and whether it takes a thought
        in such tags in the content for the same.

        Asked of conversations of our own: some templates write thoughts before calls only.
        """
        tools = [TOOL] if with_tools else None
        question, thought, answer = called()[0], "probe-thought", "probe-answer"

        def shown(**said: Any) -> str:
            try:
                return self.fitted([question, {"role": "assistant", **said}], tools)[1]
            except BadRecord:
                return ""

        calls = called()[1]["tool_calls"]
        tagged = shown(content=f"{tag}\n{thought}\n{TAGS[tag]}\n\n{answer}")
        for field in THOUGHT_FIELDS:
            plain = shown(content=answer, **{field: thought})
            if thought in plain or thought in shown(
                content="", tool_calls=calls, **{field: thought}
            ):
                return field, "".join(tagged.split()) == "".join(plain.split())
        return None, False

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one or two answers an object
    def _wants_text(self, with_tools: bool) -> bool:
        """Whether the template writes the arguments of a call rightly only if they are JSON text.

        Asked of a conversation of our own, so that the answer does not hang on the data.
        """
        tools = [TOOL] if with_tools else None
        works = []
        for text in (False, True):
            try:
                shown, _ = self.render([_with_calls(m, text, ...) for m in called()], tools)
            except BadRecord:
                shown = ""
            works.append("probe-value" in shown and not _REPR.search(shown))
        return works[1] and not works[0]


#: What templates are asked with.
TOOL: Message = {
    "type": "function",
    "function": {"name": "probe", "description": "probe", "parameters": {"type": "object"}},
}


def called(content: str = "") -> list[Message]:
    """A question, a call of `TOOL` beside `content`, and its result."""
    call = {"name": "probe", "arguments": {"probe": "probe-value", "flag": True}}
    return [
        {"role": "user", "content": "probe"},
        {
            "role": "assistant",
            "content": content,
            "tool_calls": [{"id": CALL_ID, "type": "function", "function": call}],
        },
        {"role": "tool", "name": "probe", "tool_call_id": CALL_ID, "content": "probe"},
    ]


def is_plain(message: Message) -> bool:
    """Whether a message holds nothing but its role and text."""
    return (
        len(message) == 2
        and type(message.get("role")) is str
        and type(message.get("content")) is str
    )


def _without_nothing(message: Message) -> Message:
    if message.get("tool_calls", message) or "tool_calls" not in message:
        return message
    return {key: value for key, value in message.items() if key != "tool_calls"}


def _with_calls(message: Message, as_text: bool, content: Any) -> Message:
    """The message with its calls' arguments in one form, and `content` (... for none) where it has
    none."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    message = {**message, "tool_calls": [_call(call, as_text) for call in calls]}
    if content is not ... and message.get("content") is None:
        message["content"] = content
    return message


def _call(call: Any, as_text: bool) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    arguments = function["arguments"]
    if as_text and not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    elif not as_text and isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            return call
    return {**call, "function": {**function, "arguments": arguments}}


def _by_library(source: str, variables: dict[str, Any]) -> Render:
    """Renders with what the library has for it."""
    from transformers.utils.chat_template_utils import render_jinja_template

    def render(
        messages: list[Message], tools: list[Message] | None, prompt: bool
    ) -> tuple[str, list[Span]]:
        texts, spans = render_jinja_template(
            conversations=[messages],
            tools=tools,
            chat_template=source,
            return_assistant_tokens_mask=bool(_TAG.search(source)),
            add_generation_prompt=prompt,
            **variables,
        )
        return texts[0], [tuple(span) for span in spans[0]] if spans else []

    return render


def _compiled(source: str, variables: dict[str, Any]) -> Render | None:
    """Renders, and marks turns if the template does, with what the library compiles.

    The library copies every message before it renders, in case one is no plain data, and all
    variables too; for records, which are, this takes longer than the template. None where the
    library has no such function.
    """
    from transformers.utils import chat_template_utils

    compiled = getattr(chat_template_utils, "_compile_jinja_template", None)
    alias = getattr(chat_template_utils, "_alias_reasoning_fields", None)
    if compiled is None or alias is None:
        return None
    template = compiled(source)
    track = getattr(template.environment, "activate_tracker", None)
    if track is None:
        return None
    tagged = bool(_TAG.search(source))
    shared = {**template.globals, **variables, "documents": None}

    def render(
        messages: list[Message], tools: list[Message] | None, prompt: bool
    ) -> tuple[str, list[Span]]:
        if not all(map(is_plain, messages)):
            messages = alias(messages)
        values = {
            **shared,
            "messages": messages,
            "tools": tools or None,
            "add_generation_prompt": prompt,
        }
        blocks = template.root_render_func(template.new_context(values, shared=True))
        if not tagged:
            return "".join(blocks), []
        done: list[str] = []
        spans: list[Span] = []
        with track(done, spans):  # it takes the length of what is done for a turn's place
            for block in blocks:
                done.append(block)
        return "".join(done), spans

    return render
