"""Which fields of a record mean something, in each format, and what is done with each.

The names are those that axolotl, LLaMA-Factory, TRL, ms-swift, OpenAI and the data sets of the
Hugging Face hub use. A field is read, or it is refused by its name, or it is known to change
nothing. Names that are not here are a user's own and are left alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

TALKS = ("chat", "sharegpt")
PAIRS = ("prompt", "alpaca")
LEARNED = (*TALKS, *PAIRS)
#: Formats that judge answers: by another answer, by its place among several, by itself.
JUDGED = ("preference", "ranked", "unpaired")
ANSWERS = (*LEARNED, *JUDGED)
EVERY = (*ANSWERS, "classification", "text")


class Use(Enum):
    """What is done with a field that says something."""

    read = "read"
    refused = "refused"
    nothing = "changes nothing"


def is_given(value: Any) -> bool:
    """Whether a value says something; in tables, emptiness has many faces."""
    if isinstance(value, str):
        return value.strip() not in ("", "null", "[]", "{}")
    return value is not None and value != [] and value != {}


#: Words that judge an answer.
GOOD = ("true", "yes", "good", "chosen", "desirable", "thumbs_up", "up", "+1", "\N{THUMBS UP SIGN}")
BAD = (
    *("false", "no", "bad", "rejected", "undesirable", "thumbs_down", "down", "-1"),
    "\N{THUMBS DOWN SIGN}",
)
#: Names of verdicts on an answer.
VERDICTS = ("label", "kto_tag", "desirable", "rating")


def verdict(value: Any) -> bool | None:
    """Whether a label says good (or 1) or bad (or 0, -1); None where it says neither."""
    if isinstance(value, (bool, int, float)):
        return True if value == 1 else False if value in (0, -1) else None
    text = value.strip().lower() if isinstance(value, str) else ""
    return True if text in (*GOOD, "1", "1.0") else False if text in (*BAD, "0", "0.0") else None


def is_verdict(value: Any) -> bool:
    """Whether a label judges an answer: a truth value, a number (in CSV as text), or a word."""
    if isinstance(value, str):
        text = value.strip().lower()
        return text in (*GOOD, *BAD) or text.lstrip("+-").replace(".", "", 1).isdecimal()
    return isinstance(value, (bool, int, float))


def is_not_an_answer(value: Any) -> bool:
    """Whether the channel or recipient of a turn (Harmony) is another than that of answers."""
    return is_given(value) and value not in ("final", "all")


def is_media(value: Any) -> bool:
    """Whether a value is an image, sound or film as the library `datasets` stores them in tables,
    or a list of such."""
    values = value if isinstance(value, list) else [value]
    return bool(values) and all(
        isinstance(one, dict)
        and one.keys() <= {"bytes", "path"}
        and isinstance(one.get("bytes"), bytes)
        for one in values
    )


@dataclass(frozen=True, slots=True)
class Field:
    """One meaning that fields of several names have."""

    names: tuple[str, ...]
    formats: tuple[str, ...]
    """Formats in which they have it."""
    use: Use
    what: str
    hint: str = ""
    """What to do about it where it is refused."""
    says: Callable[[Any], bool] = is_given
    """Whether a value is meant so."""


#: Whatever its name.
MEDIA = Field(
    ("images", "image", "videos", "video", "audios", "audio", "objects", "rejected_images"),
    EVERY,
    Use.refused,
    "what is seen or heard, and only text is trained on",
    "leave the record out",
)

#: Fields beside each other in a record.
FIELDS = (
    Field(("messages",), ("chat",), Use.read, "the conversation"),
    Field(("conversations", "conversation"), ("sharegpt",), Use.read, "the conversation"),
    Field(("prompt", "query", "question"), ("prompt",), Use.read, "what is asked"),
    Field(("completion", "response"), ("prompt",), Use.read, "the answer"),
    Field(("instruction",), ("alpaca",), Use.read, "what is asked"),
    Field(("input", "context", "query"), ("alpaca",), Use.read, "what the instruction is about"),
    Field(("output", "response"), ("alpaca",), Use.read, "the answer"),
    Field(
        ("prompt", "input", "messages", "conversations", "instruction", "query", "question"),
        JUDGED,
        Use.read,
        "what the answers follow",
    ),
    Field(("history",), JUDGED, Use.read, "earlier turns, [user, assistant] each"),
    Field(("chosen", "preferred_output"), ("preference",), Use.read, "the better answer"),
    Field(
        ("rejected", "non_preferred_output", "rejected_response", "rejected_messages"),
        ("preference",),
        Use.read,
        "the worse answer",
    ),
    Field(
        (
            *("margin", "score_chosen", "score_rejected", "chosen_score", "rejected_score"),
            *("chosen_rating", "rejected_rating"),
        ),
        ("preference",),
        Use.read,
        "ratings of both answers, or their difference",
    ),
    Field(("completions", "responses", "answers"), ("ranked",), Use.read, "the answers"),
    Field(
        ("scores", "ratings", "ranks", "ranking"),
        ("ranked",),
        Use.read,
        "how good each answer is: more is better, or its place, 1 the best",
    ),
    Field(("completion", "response", "output"), ("unpaired",), Use.read, "the answer"),
    Field(
        ("label", "kto_tag", "desirable", "rating"),
        ("unpaired",),
        Use.read,
        "whether the answer is a good one",
    ),
    Field(("text",), ("classification", "text"), Use.read, "the text"),
    Field(("label",), ("classification",), Use.read, "the class, or a list of classes"),
    Field(("system", "system_prompt"), ANSWERS, Use.read, "the system message"),
    Field(("history",), PAIRS, Use.read, "earlier turns, [user, assistant] each; learned, too"),
    Field(("tools", "functions"), ANSWERS, Use.read, "descriptions of tools, for the template"),
    Field(
        ("chat_template_kwargs",),
        ANSWERS,
        Use.read,
        "variables of the template for this record, over data.template_options",
    ),
    Field(("weight",), EVERY, Use.read, "weight of the record's targets"),
    MEDIA,
    Field(
        ("input_ids", "completion_mask", "assistant_masks", "assistant_mask", "loss_mask"),
        EVERY,
        Use.refused,
        "tokens or masks of another preparation",
        "give the texts alone",
    ),
    Field(
        ("labels", "mask"),
        LEARNED,
        Use.refused,
        "which tokens are learned",
        "say it for each turn: a message with weight 0 is not learned",
    ),
    Field(
        ("segments",),
        (*LEARNED, "text"),
        Use.refused,
        "parts of a text, and which of them are learned",
        "write turns: a message with weight 0 is not learned",
    ),
    Field(
        ("system_message", "system_instruction", "systemInstruction"),
        ANSWERS,
        Use.refused,
        "a system message, under a name that no tool reads unasked",
        "to put it before the rest: data.columns.system=%s",
    ),
    Field(
        ("label", "kto_tag", "desirable"),
        LEARNED,
        Use.refused,
        "a verdict on the answer, which may be one that must not be learned",
        "to learn the answers with true or 1, and no other: data.columns.weight=%s",
        is_verdict,
    ),
    Field(
        ("response_format",),
        LEARNED,
        Use.refused,
        "a form that the answer must have, which no template shows",
        "write it into the system message",
    ),
    Field(("history",), TALKS, Use.refused, "earlier turns", "put them into the conversation"),
    Field(
        ("context", "input"),
        ("prompt",),
        Use.refused,
        "a part of what is asked",
        "data=alpaca reads it as its input: map instruction, input and output with data.columns",
    ),
    Field(
        ("instruction",),
        ("prompt",),
        Use.refused,
        "a part of what is asked",
        "put it into the prompt",
    ),
    Field(
        ("reasoning_content", "reasoning", "thinking"),
        LEARNED,
        Use.refused,
        "the thoughts before the answer",
        "write messages, with the thoughts as reasoning_content beside the assistant's content",
    ),
    Field(
        ("text_pair",),
        ("classification",),
        Use.refused,
        "a second text",
        "put both texts into one",
    ),
    Field(
        ("rejected", "chosen", "rejected_response", "rejected_messages"),
        LEARNED,
        Use.nothing,
        "a better and a worse answer; a file of them is preference unless another format is said",
    ),
    Field(("prompt",), TALKS, Use.nothing, "the first question again (UltraChat)"),
    Field(("text",), LEARNED, Use.nothing, "the record as one text (Alpaca)"),
    Field(("parallel_tool_calls",), TALKS, Use.nothing, "an option of the service (OpenAI)"),
    Field(("channel",), EVERY, Use.nothing, "a group whose loss ms-swift logs by itself"),
    Field(
        ("score", "rating", "margin", "score_chosen", "score_rejected"),
        (*LEARNED, "classification", "text"),
        Use.nothing,
        "a mark; to weigh records by it: data.columns.weight=COLUMN",
    ),
    Field(
        ("attention_mask", "token_type_ids", "position_ids"),
        EVERY,
        Use.nothing,
        "goes with input_ids",
    ),
)

#: Members of a turn, in the formats that have turns.
TURN_FIELDS = (
    Field(("role", "from"), TALKS, Use.read, "who speaks"),
    Field(("content", "value"), TALKS, Use.read, "what is said: text, or parts of text"),
    Field(
        ("weight", "train", "training", "loss", "loss_weight", "loss_scale"),
        TALKS,
        Use.read,
        "1 or true: learned; 0 or false: context",
    ),
    Field(("tool_calls", "function_call"), TALKS, Use.read, "calls of tools; none if empty"),
    Field(("refusal",), TALKS, Use.read, "what is said where there is no content (OpenAI)"),
    Field(
        ("name", "tool_call_id", "reasoning_content", "thinking"),
        TALKS,
        Use.read,
        "given to the template, as any other name is",
    ),
    Field(
        ("train_detail", "training_detail"),
        TALKS,
        Use.refused,
        "which parts of a turn are learned",
        "split the turn into several messages, with a weight each",
    ),
    Field(
        ("reasoning_details", "thoughts", "thought"),
        TALKS,
        Use.refused,
        "thoughts in a form that no template reads",
        "write them as text in reasoning_content",
    ),
    Field(
        ("channel", "recipient"),
        TALKS,
        Use.refused,
        "whether a turn is a thought, a call or an answer, in a form that no template reads",
        "write thoughts as thinking and calls as tool_calls beside the answer's content",
        is_not_an_answer,
    ),
    Field(
        ("label", "desirable"),
        TALKS,
        Use.refused,
        "a verdict on the answer, which may be one that must not be learned",
        "call it weight: 1 is learned, 0 is context",
        is_verdict,
    ),
    Field(
        ("mask", "loss_mask"),
        TALKS,
        Use.refused,
        "learned in some tools, left out in others",
        "call it weight: 1 is learned, 0 is context",
    ),
    Field(
        ("images", "image", "videos", "video", "audios", "audio"),
        TALKS,
        Use.refused,
        "what is seen or heard, and only text is trained on",
        "leave the record out",
    ),
)

#: What a chat template is given besides variables of its own.
OF_THE_CALLER = frozenset(
    {
        *("messages", "tools", "documents", "add_generation_prompt", "continue_final_message"),
        *("conversation", "conversations", "chat_template", "tokenize", "return_dict"),
        *("return_tensors", "return_assistant_tokens_mask", "padding", "truncation", "max_length"),
    }
)

#: Members of a turn that say whether it is learned.
FLAGS = next(known.names for known in TURN_FIELDS if "weight" in known.names)
#: Names under which thoughts stand beside the content; the one that most templates read first.
THOUGHT_FIELDS = ("reasoning_content", "thinking", "reasoning")
#: Where the answer to a conversation may stand that ends with a question.
ANSWERS_BESIDE = ("response", "completion", "output", "answer")
#: Beyond this, one record is all that a step learns.
MAX_WEIGHT = 1e6

Refused = Mapping[str, Field]


def _refused(fields: tuple[Field, ...], format_name: str) -> Refused:
    return {
        name: field
        for field in fields
        for name in field.names
        if field.use is Use.refused and format_name in field.formats
    }


_REFUSED = {name: _refused(FIELDS, name) for name in EVERY}
_REFUSED_IN_TURNS = _refused(TURN_FIELDS, "chat")


@functools.cache
def reads(format_name: str) -> frozenset[str]:
    """Names of the fields that a format reads."""
    mine = (field for field in FIELDS if field.use is Use.read and format_name in field.formats)
    return frozenset(name for field in mine for name in field.names)


def known(format_name: str) -> frozenset[str]:
    """Names of the fields of which it is known what they mean in a format."""
    mine = (field for field in FIELDS if format_name in field.formats)
    return frozenset(name for field in mine for name in field.names)


def known_in_turns() -> frozenset[str]:
    """The same of the members of a turn."""
    return frozenset(name for field in TURN_FIELDS for name in field.names)


def refused(record: Mapping[str, Any], format_name: str) -> tuple[str, Field] | None:
    """The first field of a record that is known and cannot be honoured, by its name."""
    return _first(record, _REFUSED.get(format_name, {}))


def refused_in_turn(turn: Mapping[str, Any]) -> tuple[str, Field] | None:
    """The same of the members of a turn."""
    return _first(turn, _REFUSED_IN_TURNS)


def _first(values: Mapping[str, Any], known: Refused) -> tuple[str, Field] | None:
    for name, value in values.items():
        field = known.get(name)
        if field and field.says(value):
            return name, field
        if field is None and is_media(value):
            return name, MEDIA
    return None
