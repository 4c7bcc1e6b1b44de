"""From a conversation to its text and the spans of it that are learned.

Learned is what the model must write itself: each assistant turn from where the generation prompt
ends to its end-of-turn token, which it must learn too, or it never stops. A template that marks
this with `{% generation %}` is taken at its word; for others it is found by rendering prefixes of
the conversation. Where a template renders a turn differently once others follow (Qwen3 strips
thoughts of earlier turns), prefixes only locate the turn in the text of the whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

from launcher.data.formats.base import BadRecord, Chat
from launcher.errors import ConfigError

Message = dict[str, Any]
Span = tuple[int, int]

_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")


class ChatRenderer:
    """Renders with the chat template of a tokenizer. `ConfigError` if it has none."""

    def __init__(self, tokenizer: Any, system: str | None = None) -> None:
        if not tokenizer.chat_template:
            raise ConfigError(
                "the tokenizer has no chat template, so conversations cannot be written as text",
                where="model.chat_template",
                hint="give a Jinja file with model.chat_template=FILE, use an instruction-tuned "
                "model's tokenizer, or train on plain text with data=text",
            )
        self._tokenizer = tokenizer
        self._system = system
        self._variables = dict(tokenizer.special_tokens_map)
        self._quick = _quick_template(tokenizer, self._variables)
        added = tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special} | {tokenizer.eos_token or ""}
        #: what can end a turn
        self._specials = tuple(sorted(special - {""}))

    def render(self, chat: Chat) -> tuple[str, list[Span]]:
        """Text of the whole conversation and the learned spans in it, ascending, as [begin, end).

        Raises `BadRecord` if the template refuses the conversation or hides what it made of a turn.
        """
        messages, silent = chat.messages, chat.context_only
        if self._system and messages[0]["role"] not in ("system", "developer"):
            messages = [{"role": "system", "content": self._system}, *messages]
            silent = frozenset(i + 1 for i in silent)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        text, tagged = self._text(messages, chat.tools)
        if tagged and (not silent or len(tagged) == len(answers)):
            spans = [
                self._with_end(text, span, messages, chat.tools, answers)
                for number, span in enumerate(tagged)
                if not silent or answers[number] not in silent
            ]
        else:
            spans = [
                self._locate(text, messages, chat.tools, i) for i in answers if i not in silent
            ]
        return text, [(begin, end) for begin, end in spans if begin < end]

    def ends_turn(self, text: str) -> bool:
        """Whether `text` ends with a special token, at which generation can stop."""
        return text.endswith(self._specials)

    def _text(
        self, messages: list[Message], tools: list[Message] | None, prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """Rendered text, and the spans of its generation blocks (none if the template has no
        tags)."""
        from jinja2.exceptions import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            if self._quick and not tools and all(map(_is_plain, messages)):
                return self._quick(messages, prompt)
            template = self._tokenizer.get_chat_template(None, tools)
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

    def _with_end(
        self,
        text: str,
        span: Span,
        messages: list[Message],
        tools: list[Message] | None,
        answers: list[int],
    ) -> Span:
        """The span of a generation block, extended over an end-of-turn token that it leaves out."""
        begin, end = span
        if self.ends_turn(text[begin:end].rstrip()):
            return span
        for i in answers:
            turn_end = self._locate(text, messages, tools, i)[1]
            if turn_end > begin:
                rest = text[end:turn_end].strip()
                return (begin, turn_end) if rest in self._specials else span
        return span

    def _locate(
        self, text: str, messages: list[Message], tools: list[Message] | None, i: int
    ) -> Span:
        """Where assistant turn `i` lies in `text`, by rendering the conversation up to it."""
        before = self._prefix(messages, tools, i, prompt=True)
        begin = len(before)
        if not text.startswith(before):
            # A generation prompt that opens a thought which the finished turn does not show.
            begin = len(os.path.commonprefix([text, before]))
            if begin <= len(self._prefix(messages, tools, i, prompt=False)):
                raise _unlike(i)
        last = i == len(messages) - 1
        after = text if last else self._prefix(messages, tools, i + 1, prompt=False)
        turn = after[begin:].rstrip()
        if not text.startswith(after):
            stop = next((token for token in self._specials if turn.endswith(token)), None)
            found = text.find(stop, begin) if stop else -1
            if stop is None or found < 0:
                raise _unlike(i)
            return begin, found + len(stop)
        # White space behind the end-of-turn token belongs to the template, not to the model.
        return begin, begin + len(turn) if self.ends_turn(turn) else len(after)

    def _prefix(
        self, messages: list[Message], tools: list[Message] | None, end: int, *, prompt: bool
    ) -> str:
        try:
            return self._text(messages[:end], tools, prompt)[0]
        except BadRecord as error:
            if not end:  # many templates look at the first message unasked
                return ""
            raise _unlike(end - 1) from error


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


def _is_plain(message: Message) -> bool:
    """Whether a message holds nothing but its role and text."""
    return (
        len(message) == 2
        and type(message.get("role")) is str
        and type(message.get("content")) is str
    )


def _unlike(i: int) -> BadRecord:
    return BadRecord(
        f"the chat template writes message {i + 1} differently when others follow, so what the "
        "model is to learn cannot be told from the rest",
        hint="mark it in the template with {% generation %}...{% endgeneration %} "
        "(model.chat_template=FILE), or split the record after each assistant turn",
    )
