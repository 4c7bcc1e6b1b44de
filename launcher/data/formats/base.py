"""What a format makes of a record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, ClassVar

from launcher.record_fields import Field

#: Characters that are said about one bad record.
MAX_FOUND = 400


class BadRecord(Exception):
    """A record that cannot be trained on; the caller knows its file and line.

    `rule` is the rule of `launcher data report` that counts it.
    """

    def __init__(self, found: str, hint: str = "", *, rule: str = "broken") -> None:
        # What was found may hold a value of the record, of any size.
        found = found if len(found) <= MAX_FOUND else f"{found[:MAX_FOUND]} ..."
        super().__init__(found, hint)
        self.found = found
        self.hint = hint
        self.rule = rule


Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation for the chat template; what the assistant says is learned."""

    kind: ClassVar[str] = "answers"

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    context_only: frozenset[int] = frozenset()
    """Indices of assistant messages with weight 0: shown to the model, not learned."""
    template_options: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the template for this conversation, over those of the config."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A prompt and the completion that is learned."""

    kind: ClassVar[str] = "answers"

    prompt: str
    completion: str


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    """A question without an answer, for an objective whose model answers."""

    kind: ClassVar[str] = "answers"

    prompt: str | list[dict[str, Any]]
    """A text, or the messages of a conversation that the assistant is to go on with."""
    tools: list[dict[str, Any]] | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Text:
    """A document, learned from its first token to its last."""

    kind: ClassVar[str] = "texts"

    text: str


@dataclass(frozen=True, slots=True)
class Labelled(Pair):
    """A text as the prompt, and the name of its class as the completion."""

    kind: ClassVar[str] = "labels"

    several: tuple[str, ...] | None = None
    """Names of the classes where the label is a list of any length; None where it is one name."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of all classes of the text."""
        return (self.completion,) if self.several is None else self.several


@dataclass(frozen=True, slots=True)
class Preference:
    """Two answers to one conversation, of which the first is the better. Messages throughout."""

    kind: ClassVar[str] = "pairs"

    prompt: Messages
    """What both answers follow; empty where the answers are whole texts."""
    chosen: Messages
    rejected: Messages
    tools: list[dict[str, Any]] | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    margin: float | None = None
    """By how much the chosen answer is rated above the other, in the unit of the ratings; None
    where nothing rates them."""

    @property
    def sides(self) -> tuple[Unpaired, Unpaired]:
        """The chosen answer as a good one, the other as a bad one."""
        beside = self.tools, self.template_options
        good = Unpaired(self.prompt, self.chosen, True, *beside)
        return good, Unpaired(self.prompt, self.rejected, False, *beside)


@dataclass(frozen=True, slots=True)
class Unpaired:
    """An answer to a conversation, and whether it is a good one."""

    kind: ClassVar[str] = "unpaired"

    prompt: Messages
    answer: Messages
    label: bool
    tools: list[dict[str, Any]] | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ranked:
    """Several answers to one conversation, the best first."""

    kind: ClassVar[str] = "ranked"

    prompt: Messages
    answers: tuple[Messages, ...]
    scores: tuple[float, ...]
    """Of each answer, falling; equal ones of answers of which none is better."""
    tools: list[dict[str, Any]] | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    is_rated: bool = True
    """Whether differences of scores mean something: they are ratings, not mere places."""

    def pairs(self, *, extremes: bool = False) -> list[Preference]:
        """Every two answers of which one is better, or (`extremes`) the best and the worst alone.
        Ties give no pair, nor do answers that say the same."""
        places = range(len(self.answers))
        chosen = [(0, len(self.answers) - 1)] if extremes else combinations(places, 2)
        return [
            Preference(
                self.prompt,
                self.answers[better],
                self.answers[worse],
                self.tools,
                self.template_options,
                self.scores[better] - self.scores[worse] if self.is_rated else None,
            )
            for better, worse in chosen
            if self.scores[better] > self.scores[worse]
            and self.answers[better] != self.answers[worse]
        ]


Example = Chat | Pair | OpenQuestion | Text | Preference | Unpaired | Ranked


def refuse(known: tuple[str, Field] | None, place: str) -> None:
    """`BadRecord` for a field that cannot be honoured; `place` has {!r} for its name."""
    if known is None:
        return
    name, meant = known
    hint = meant.hint % name if "%s" in meant.hint else meant.hint
    raise BadRecord(
        f"{place.format(name)} is not read: {meant.what}",
        hint=f"{hint}; to train as if it were not there: data.columns.{name}=",
    )


def text_field(record: Mapping[str, Any], name: str) -> str:
    """Text in field `name`; `BadRecord` if it is absent or no text."""
    if name not in record:
        keys = ", ".join(map(repr, record)) or "none"
        raise BadRecord(
            f"no field {name!r}; the record has: {keys}",
            hint=f"map it with data.columns.{name}=COLUMN, or force another data.format",
        )
    value = record[name]
    if not isinstance(value, str):
        raise BadRecord(f"field {name!r} is {kind(value)}, not text", hint=as_text(value))
    return value


def as_text(value: object) -> str:
    """What to do where a text should be."""
    if value is None:
        return "give a text, or remove the record"
    if isinstance(value, (list, dict)):
        return "write a text; conversations are read with data=chat, from a field 'messages'"
    if isinstance(value, bytes):
        return "write it as text (in pyarrow: cast('string'))"
    return "write the value as a JSON string"


def kind(value: object) -> str:
    """How a person calls the type of a JSON value."""
    if value is None:
        return "null"
    names = {bool: "a truth value", int: "a number", float: "a number", str: "text"}
    names |= {list: "a list", dict: "an object", bytes: "binary data"}
    return names.get(type(value), type(value).__name__)
