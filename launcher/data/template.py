"""A tokenizer's chat template at work: messages in, text out."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from launcher.data.formats.base import BadRecord
from launcher.errors import ConfigError

Message = dict[str, Any]
Span = tuple[int, int]

_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
#: Where a template writes a mapping as Python does, it would rather have had JSON text.
_REPR = re.compile(r"\{'probe': ")
_CALL_ID = "probe0000"  # some templates want nine characters


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
        self._quick = _quick_template(tokenizer, self._variables)

    def render(
        self, messages: list[Message], tools: list[Message] | None, prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """Rendered text, and the spans of its generation blocks (none if the template has no
        tags). Raises `BadRecord` if the template refuses the conversation.
        """
        from jinja2.exceptions import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            if self._quick and not tools and all(map(is_plain, messages)):
                return self._quick(messages, prompt)
            template = self.source(tools)
            texts, spans = render_jinja_template(
                conversations=[messages],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=bool(_TAG.search(template)),
                add_generation_prompt=prompt,
                **self._variables,
            )
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
        return texts[0], [tuple(span) for span in spans[0]] if spans else []

    def source(self, tools: list[Message] | None) -> str:
        """The Jinja text, which may be another one for conversations with tools."""
        return str(self._tokenizer.get_chat_template(None, tools))

    def fitted(
        self, messages: list[Message], tools: list[Message] | None
    ) -> tuple[list[Message], str, list[Span]]:
        """The messages as the template takes them, and what `render` makes of them.

        A list of no calls is left out: templates ask whether it is there. Arguments of calls are
        objects or JSON text, and a call without content goes with none, "" or null: what the
        template is known to read comes first, what it does not refuse is taken. Raises `BadRecord`
        if it refuses all.
        """
        messages = [_without_nothing(message) for message in messages]
        if not any("tool_calls" in message for message in messages):
            return messages, *self.render(messages, tools)
        as_text = self._wants_text(bool(tools))
        first: BadRecord | None = None
        for text in (as_text, not as_text):
            for content in (..., "", None):
                tried = [_with_calls(message, text, content) for message in messages]
                try:
                    return tried, *self.render(tried, tools)
                except BadRecord as error:
                    first = first or error
                if all("content" in message for message in messages):
                    break
        assert first is not None
        raise first

    @functools.lru_cache(maxsize=2)  # noqa: B019 - one or two answers an object
    def _wants_text(self, with_tools: bool) -> bool:
        """Whether the template writes the arguments of a call rightly only if they are JSON text.

        Asked of a conversation of our own, so that the answer does not hang on the data.
        """
        arguments = {"probe": "probe-value", "flag": True}
        call = {"name": "probe", "arguments": arguments}
        tool = {"name": "probe", "description": "probe", "parameters": {"type": "object"}}
        tools = [{"type": "function", "function": tool}] if with_tools else None
        talk: list[Message] = [
            {"role": "user", "content": "probe"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"id": _CALL_ID, "type": "function", "function": call}],
            },
            {"role": "tool", "name": "probe", "tool_call_id": _CALL_ID, "content": "probe"},
        ]
        works = []
        for text in (False, True):
            try:
                shown, _ = self.render([_with_calls(m, text, ...) for m in talk], tools)
            except BadRecord:
                shown = ""
            works.append("probe-value" in shown and not _REPR.search(shown))
        return works[1] and not works[0]


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


def _quick_template(
    tokenizer: Any, variables: dict[str, Any]
) -> Callable[[list[Message], bool], tuple[str, list[Span]]] | None:
    """Renders plain messages, and marks turns if the template does, with what the library compiles.

    The library copies every message before it renders, in case one is no plain data, and all
    variables too; for plain messages this takes longer than the template. None where the library
    has no such function.
    """
    from transformers.utils import chat_template_utils

    compiled = getattr(chat_template_utils, "_compile_jinja_template", None)
    try:
        source = tokenizer.get_chat_template(None, None)
    except ValueError:  # several templates, none of them the default
        return None
    if compiled is None:
        return None
    template = compiled(source)
    track = getattr(template.environment, "activate_tracker", None)
    if track is None:
        return None
    tagged = bool(_TAG.search(source))
    shared = {**template.globals, **variables, "tools": None, "documents": None}

    def render(messages: list[Message], prompt: bool) -> tuple[str, list[Span]]:
        values = {**shared, "messages": messages, "add_generation_prompt": prompt}
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
