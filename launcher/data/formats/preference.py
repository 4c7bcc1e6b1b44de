"""{"prompt": ..., "chosen": ..., "rejected": ...}: two answers, the first one better."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launcher.data.formats.answers import (
    answer_of,
    asked_in,
    behind,
    dialogue,
    prompt_of,
    rating,
    require_answer,
)
from launcher.data.formats.base import BadRecord, Messages, Preference
from launcher.data.formats.jsonfields import decoded
from launcher.data.formats.messages import (
    Message,
    Turns,
    template_options_of,
    tools_of,
    with_system,
)
from launcher.record_fields import is_given

#: The names of both answers, those of OpenAI and ms-swift behind TRL's.
_CHOSEN = ("chosen", "preferred_output")
_REJECTED = ("rejected", "non_preferred_output", "rejected_response", "rejected_messages")
#: What the better answer is the end of, where only the worse one has a field (ms-swift).
_WHOLE = ("messages", "response", "completion", "output")
#: Ratings of both answers.
_RATINGS = (
    ("score_chosen", "score_rejected"),
    ("chosen_score", "rejected_score"),
    ("chosen_rating", "rejected_rating"),
)


class PreferenceFormat:
    """Answers as texts or messages; the prompt is given, or is what both answers begin with."""

    def matches(self, record: Mapping[str, Any]) -> bool:
        """Whether both answers are there, under any of their names."""
        if any(is_given(record.get(name)) for name in _CHOSEN):
            return any(is_given(record.get(name)) for name in _REJECTED)
        return _worse_alone(record) is not None and any(name in record for name in _WHOLE)

    def read(self, record: Mapping[str, Any]) -> Preference:
        """The pair; `BadRecord` if an answer is missing, empty, or no better than the other."""
        record, tools = _as_trl(record)
        prompt = prompt_of(record)
        if prompt:
            chosen, rejected = (behind(prompt, _answer(record, name)) for name in _SIDES)
        else:
            prompt, chosen, rejected = _without_prompt(record)
        if chosen == rejected:
            raise BadRecord(
                "chosen and rejected are the same",
                hint="there is nothing to prefer: remove the record, or set data.bad_records=skip",
                rule="equal_answers",
            )
        require_answer(chosen, "chosen")
        require_answer(rejected, "rejected")
        before = with_system(record, Turns(prompt)).messages
        options, margin = template_options_of(record), _margin(record)
        return Preference(before, chosen, rejected, tools, options, margin)


def how_to_learn_chosen(record: Mapping[str, Any]) -> str:
    """What to type to learn the better answers of records like this one."""
    record = decoded(record)
    chosen = next((name for name in _CHOSEN if name in record), None)
    if chosen is None:  # the better answer is where it is in records without a worse one
        usual = {"messages": "chat", "conversations": "sharegpt", "instruction": "alpaca"}
        name = next((usual[field] for field in usual if field in record), "prompt")
        return f"to learn the better answers: data={name}"
    asked = asked_in(record)
    mapping = {"prompt": asked, "completion": chosen}
    name = "prompt"
    if asked is None and isinstance(record[chosen], str):
        name, mapping = "text objective=text", {"text": chosen}
    elif asked is None:
        name, mapping = "chat", {"messages": chosen}
    elif asked == "instruction":
        name, mapping = "alpaca", {"output": chosen}
    written = ", ".join(f"{to}: {of}" for to, of in mapping.items() if to != of)
    return f"to learn the better answers: data={name} 'data.columns={{{written}}}'"


def _worse_alone(record: Mapping[str, Any]) -> str | None:
    """The field of a worse answer whose better one stands where answers stand (ms-swift)."""
    return next(
        (name for name in ("rejected_response", "rejected_messages") if record.get(name)), None
    )


def _as_trl(record: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[Message] | None]:
    """The record with TRL's names for both answers, and its tools."""
    renamed = dict(record)
    for want, names in (("chosen", _CHOSEN), ("rejected", _REJECTED)):
        have = next((name for name in names if record.get(name) is not None), want)
        if have in record:
            renamed[want] = record[have]
    if isinstance(asked := record.get("input"), dict):  # OpenAI's
        renamed["input"] = asked.get("messages")
        renamed["tools"] = asked.get("tools", record.get("tools"))
    if "chosen" not in renamed and _worse_alone(record):
        renamed |= _whole(record)
    return renamed, tools_of(renamed)


def _whole(record: Mapping[str, Any]) -> Mapping[str, Any]:
    """Prompt and better answer of a record that says which answer would have been worse."""
    messages = record.get("messages")
    if isinstance(messages, list):
        return {"messages": messages[:-1], "chosen": messages[-1:]}
    return {"chosen": next((record[name] for name in _WHOLE[1:] if name in record), None)}


_SIDES = ("chosen", "rejected")


def _answer(record: Mapping[str, Any], name: str) -> Messages:
    if name not in record:
        keys = ", ".join(map(repr, record)) or "none"
        raise BadRecord(
            f"no field {name!r}; the record has: {keys}",
            hint=f"map it with data.columns.{name}=COLUMN, or force another data.format",
        )
    return answer_of(record[name], name)


def _without_prompt(record: Mapping[str, Any]) -> tuple[Messages, Messages, Messages]:
    """Prompt and both answers, where the prompt is what both begin with: messages, turns of a
    dialogue in one text, or words."""
    chosen, rejected = (_answer(record, name) for name in _SIDES)
    texts = [record[name] for name in _SIDES if isinstance(record[name], str)]
    if len(texts) == len(_SIDES):
        talks = [dialogue(text) for text in texts]
        if not all(talks):
            return _split_texts(*texts)
        chosen, rejected = (talk or [] for talk in talks)
    shared = _shared(chosen, rejected)
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _split_texts(chosen: str, rejected: str) -> tuple[Messages, Messages, Messages]:
    """Whole words that both texts begin with are what is asked, as in TRL."""
    both = zip(chosen, rejected, strict=False)
    last = min(len(chosen), len(rejected)) - 1
    same = next((i for i, (a, b) in enumerate(both) if a != b), last)
    while same and not (chosen[same].isspace() and rejected[same].isspace()):
        same -= 1
    prompt = [{"role": "user", "content": chosen[:same]}] if chosen[:same].strip() else []
    start = same if prompt else 0
    good, bad = ({"role": "assistant", "content": text[start:]} for text in (chosen, rejected))
    return prompt, [good], [bad]


def _margin(record: Mapping[str, Any]) -> float | None:
    """By how much the chosen answer is rated above the other; `BadRecord` where it is not."""
    name, found = "margin", rating(record.get("margin"), "margin")
    for names in _RATINGS:
        better, worse = (rating(record.get(name), name) for name in names)
        if found is None and better is not None and worse is not None:
            name, found = names[0], better - worse
    if found is None or found > 0:
        return found
    aside = f"to learn it all the same: data.columns.{name}="
    if found == 0:
        raise BadRecord(
            "both answers are rated the same",
            hint=f"nothing is preferred: remove the record, or set data.bad_records=skip; {aside}",
            rule="tied_ratings",
        )
    raise BadRecord(
        f"the rejected answer is rated higher, by {-found:g}",
        hint=f"swap chosen and rejected, or set data.bad_records=skip; {aside}",
    )


def _shared(chosen: Messages, rejected: Messages) -> int:
    """How many first messages of both are the same: the prompt, where none is given."""
    pairs = zip(chosen[:-1], rejected[:-1], strict=False)
    return next(
        (i for i, (a, b) in enumerate(pairs) if a != b), min(len(chosen), len(rejected)) - 1
    )
