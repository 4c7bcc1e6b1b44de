"""Prompts and ready answers from JSON Lines; every fault is named by file and line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.core.errors import ConfigError, DataError
from launcher.record_fields import OF_THE_CALLER, is_given

#: A turn of a conversation: {"role": ..., "content": ...}.
Message = dict[str, str]

PROMPT_HINT = 'a line is {"prompt": "..."}, or {"messages": [...]} up to the user\'s last turn'
ANSWER_HINT = 'a line is {"prompt": "...", "answer": "..."}'


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is asked: as a conversation for a model, as text for people, and where it stands."""

    messages: list[Message]
    text: str
    where: str
    template_options: dict[str, Any] = field(default_factory=dict)
    """Variables of the chat template for this prompt alone."""


def read_prompts(path: Path) -> list[Prompt]:
    """Prompts of a file, each once; an answer that ends a conversation is left out.

    Raises `ConfigError` if there is no such file, `DataError` for a line that is no prompt.
    """
    found: dict[str, Prompt] = {}
    for where, record in _records(path, PROMPT_HINT):
        messages = _messages(record, where)
        prompt = Prompt(messages, _text(messages), where, _template_options(record, where))
        if prompt.text in found:
            first = found[prompt.text].where
            hint = "keep one: the same prompt twice counts twice"
            raise DataError(f"the same prompt as {first}", where=where, hint=hint)
        found[prompt.text] = prompt
    return list(found.values())


def read_answers(path: Path) -> dict[str, str]:
    """Prompt text -> answer; an answer may be empty. Raises as `read_prompts` does."""
    found: dict[str, str] = {}
    for where, record in _records(path, ANSWER_HINT):
        prompt = _text(_messages(record, where))
        answer = record.get("answer")
        if not isinstance(answer, str):
            raise DataError("there is no answer as text", where=where, hint=ANSWER_HINT)
        if found.setdefault(prompt, answer) != answer:
            hint = "keep one answer a prompt"
            raise DataError("another answer to the same prompt", where=where, hint=hint)
    return found


def _records(path: Path, hint: str) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError("no such file", where=str(path), hint=hint) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot be read: {error}", where=str(path), hint=hint) from error
    empty = True
    # Not splitlines: JSON text may hold line separators that are none in JSON Lines.
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where, empty = f"{path}:{number}", False
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"broken JSON: {error}", where=where, hint=hint) from error
        if not isinstance(record, dict):
            raise DataError("not a JSON object", where=where, hint=hint)
        if any("\ud800" <= letter <= "\udfff" for letter in json.dumps(record, ensure_ascii=False)):
            raise DataError("half of a surrogate pair", where=where, hint="mend the escape \\u")
        yield where, record
    if empty:
        raise DataError("there is no line in it", where=str(path), hint=hint)


def _messages(record: dict[str, Any], where: str) -> list[Message]:
    prompt, messages = record.get("prompt"), record.get("messages")
    if isinstance(prompt, str) and prompt.strip():
        return [{"role": "user", "content": prompt}]
    if not isinstance(messages, list):
        raise DataError("there is no prompt in it", where=where, hint=PROMPT_HINT)
    turns: list[Message] = []
    for message in messages:
        turn = message if isinstance(message, dict) else {}
        role, content = turn.get("role"), turn.get("content")
        if not isinstance(role, str) or not isinstance(content, str):
            found = "a message without role and content as text"
            raise DataError(found, where=where, hint=PROMPT_HINT)
        turns.append({"role": role, "content": content})
    if turns and turns[-1]["role"] == "assistant":
        turns.pop()
    if not turns or turns[-1]["role"] != "user" or not turns[-1]["content"].strip():
        raise DataError("the user does not speak last", where=where, hint=PROMPT_HINT)
    return turns


def _template_options(record: dict[str, Any], where: str) -> dict[str, Any]:
    raw = record.get("chat_template_kwargs")
    if not is_given(raw):
        return {}
    if not isinstance(raw, dict) or not OF_THE_CALLER.isdisjoint(raw):
        raise DataError(
            "'chat_template_kwargs' is no object of the chat template's own variables",
            where=where,
            hint='write {"enable_thinking": false}',
        )
    return {name: value for name, value in raw.items() if value is not None}


def _text(messages: list[Message]) -> str:
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{turn['role'].capitalize()}: {turn['content']}" for turn in messages)
