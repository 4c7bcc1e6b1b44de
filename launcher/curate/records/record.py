"""One record as the rules see it: what is asked, what is answered, and where it stands."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from launcher.data.formats.base import (
    Chat,
    Example,
    Labelled,
    Messages,
    OpenQuestion,
    Pair,
    Preference,
    Text,
    Unpaired,
)

SYSTEM_ROLES = ("system", "developer")
#: Role names under which pairs and documents are counted.
PROMPT, ANSWER, DOCUMENT = "user", "assistant", "document"


@dataclass(frozen=True, slots=True)
class Record:
    """A record's texts. `text` is all that is said but what many records share, which would make
    them alike: the system message, and the label of a class."""

    file: int
    line: int
    prompt: str
    """Everything before the last answer; empty for a document."""
    answer: str
    """The last turn that is learned; of answers by rank the best, of a preference the chosen one;
    the document itself."""
    text: str
    label: str | None = None
    source: str = ""
    roles: list[str] = field(default_factory=list)
    system: str = ""
    answers: tuple[str, ...] = ()
    """All turns that are learned, the last one included."""
    rejected: str | None = None
    """The answer that a preference turns down; the worst of ranked ones."""
    verdict: bool | None = None
    """Whether an answer that is judged by itself is a good one."""
    is_asked: bool = False
    """Whether it is a question that the model in training answers."""

    @property
    def everything(self) -> str:
        """System message and text: what personal data and damage are looked for in."""
        return f"{self.system}\n{self.text}" if self.system else self.text


def make(example: Example, *, file: int, line: int, source: str = "") -> Record:
    """What the rules see of an example that a format has read."""
    place: dict[str, Any] = {"file": file, "line": line, "source": source}
    if isinstance(example, Text):
        text = example.text
        return Record(prompt="", answer=text, text=text, roles=[DOCUMENT], answers=(text,), **place)
    if isinstance(example, Labelled):
        # The label is no part of the text: it would make all records of a class alike.
        return Record(
            prompt=example.prompt,
            answer=example.completion,
            text=example.prompt,
            label=example.completion,
            roles=[PROMPT, ANSWER],
            answers=(example.completion,),
            **place,
        )
    if isinstance(example, Pair):
        return Record(
            prompt=example.prompt,
            answer=example.completion,
            text=f"{example.prompt}\n{example.completion}".strip("\n"),
            roles=[PROMPT, ANSWER],
            answers=(example.completion,),
            **place,
        )
    if isinstance(example, Chat):
        return _chat(example, place)
    if isinstance(example, OpenQuestion):
        return _asked(example, place)
    if isinstance(example, Preference):
        return _judged(example.prompt, example.chosen, example.rejected, place)
    if isinstance(example, Unpaired):
        return _judged(example.prompt, example.answer, None, {**place, "verdict": example.label})
    (extremes,) = example.pairs(extremes=True) or example.pairs()[:1]
    return _judged(example.prompt, extremes.chosen, extremes.rejected, place)


def loose(raw: Any, *, file: int, line: int, source: str = "") -> Record:
    """All texts in a record of whatever layout: benchmarks come in their own."""
    text = "\n".join(strings(raw))
    return Record(file=file, line=line, prompt="", answer=text, text=text, source=source)


def strings(value: Any) -> list[str]:
    """All texts in nested data, in order, without the keys."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [text for part in value for text in strings(part)]
    return []


def content(message: Mapping[str, Any]) -> str:
    """What a message says: its text, and its tool calls as JSON."""
    said = "\n".join(strings(_parts(message.get("content"))))
    calls = message.get("tool_calls")
    if not calls:
        return said
    written = json.dumps(
        [call.get("function", call) for call in calls], ensure_ascii=False, sort_keys=True
    )
    return f"{said}\n{written}" if said else written


def digest(*texts: str) -> bytes:
    """16 bytes that stand for these texts, which cannot flow into each other."""
    made = hashlib.blake2b(digest_size=16)
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        made.update(len(data).to_bytes(8, "little"))
        made.update(data)
    return made.digest()


def identity(record: Record) -> tuple[bytes, bytes, bytes]:
    """Hashes of the whole record [16], of what is asked [8] and of what is answered [8].

    Case and white space do not count. Of a preference the question is which of its two answers is
    the better one, so that a pair and its reverse contradict each other; of an answer that is
    judged, whether it is a good one. Without a prompt, or with
    a rejected answer equal to the chosen one, the hash of the question is that of the record.
    """
    asked, answered = _plain(record.prompt), _plain(record.answer)
    system = _plain(record.system)
    if record.verdict is not None:
        judged = str(record.verdict)
        question = digest(system, asked, answered)
        return digest(system, asked, answered, judged), question[:8], digest(judged)[:8]
    if record.rejected is None:
        whole = digest(system, asked, answered, *map(_plain, record.answers))
        question = digest(system, asked)
    else:
        pair = (answered, _plain(record.rejected))
        whole = digest(system, asked, *pair)
        question = digest(system, asked, *sorted(pair))
    return whole, (question if asked else whole)[:8], digest(answered)[:8]


def sides(record: Record) -> tuple[bytes, bytes, bytes]:
    """Hashes of what is asked, and of it with the answer and with the worse answer, [8] each; zeros
    where there is no such answer. Case and white space do not count."""
    asked = (_plain(record.system), _plain(record.prompt))
    said = (record.answer, record.rejected)
    better, worse = (b"" if text is None else digest(*asked, _plain(text)) for text in said)
    return digest(*asked)[:8], better[:8] or bytes(8), worse[:8] or bytes(8)


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()


def _parts(said: Any) -> Any:
    """The texts among the parts of a message; their types and addresses are no text."""
    if not isinstance(said, list):
        return said
    return [part.get("text", "") if isinstance(part, Mapping) else part for part in said]


def _joined(messages: Sequence[Mapping[str, Any]]) -> str:
    return "\n".join(filter(None, map(content, messages)))


def _split(messages: Sequence[Mapping[str, Any]]) -> tuple[str, list[Mapping[str, Any]]]:
    """The system messages' text, and the other messages."""
    spoken = [message for message in messages if message.get("role") not in SYSTEM_ROLES]
    return _joined([message for message in messages if message not in spoken]), spoken


def _chat(example: Chat, place: dict[str, Any]) -> Record:
    messages = example.messages
    learned = [
        i
        for i, message in enumerate(messages)
        if message["role"] == "assistant" and i not in example.context_only
    ]
    last = learned[-1]
    system, spoken = _split(messages)
    _, before = _split(messages[:last])
    return Record(
        prompt=_joined(before),
        answer=content(messages[last]),
        text=_joined(spoken),
        roles=[message["role"] for message in messages],
        system=system,
        answers=tuple(content(messages[i]) for i in learned),
        **place,
    )


def _asked(example: OpenQuestion, place: dict[str, Any]) -> Record:
    """A question, of whose answer nothing is expected."""
    prompt = example.prompt
    messages = [{"role": PROMPT, "content": prompt}] if isinstance(prompt, str) else prompt
    system, spoken = _split(messages)
    asked = _joined(spoken)
    roles = [message["role"] for message in messages]
    return Record(
        prompt=asked, answer="", text=asked, roles=roles, system=system, is_asked=True, **place
    )


def _judged(
    prompt: Messages, better: Messages, worse: Messages | None, place: dict[str, Any]
) -> Record:
    system, spoken = _split(prompt)
    asked, answer = _joined(spoken), _joined(better)
    rejected = None if worse is None else _joined(worse)
    return Record(
        prompt=asked,
        answer=answer,
        text="\n".join(filter(None, (asked, answer, rejected))),
        roles=[message["role"] for message in (*prompt, *better)],
        system=system,
        # Of a bad answer nothing is expected.
        answers=() if place.get("verdict") is False else (answer,),
        rejected=rejected,
        **place,
    )
