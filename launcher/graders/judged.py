"""Models behind an OpenAI-compatible endpoint that give a score or a label."""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from launcher.core.errors import ConfigError
from launcher.graders.endpoint import Declined, Endpoint, Unanswered
from launcher.graders.errors import Ungraded
from launcher.graders.grader import Grade, Grader, Setting
from launcher.graders.members import Members
from launcher.graders.sample import Sample
from launcher.graders.template import Template

_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = ("input_text", "output_text")
#: Sampling parameters of the wire form -> what they are called in a request.
_SAMPLING = {
    "max_completions_tokens": "max_completion_tokens",
    "reasoning_effort": "reasoning_effort",
    "seed": "seed",
    "temperature": "temperature",
    "top_p": "top_p",
}
#: Mark-up and quotes around what a model has to say last.
_ADORNMENT = str.maketrans("", "", "*`\"'")


class _JudgedGrader(Grader):
    """Asks a model; what it has to say stands in the last line of its reply."""

    def __init__(self, members: Members, setting: Setting) -> None:
        super().__init__(members, setting)
        self._messages = _messages(members)
        sampling = members.mapping("sampling_params", {}) if self._has_sampling else {}
        for name in sampling.keys() - _SAMPLING.keys():
            hint = "there are " + ", ".join(_SAMPLING)
            members.complain(f"sampling_params.{name}", "there is no such parameter", hint)
        extra = {_SAMPLING[name]: value for name, value in sampling.items() if name in _SAMPLING}
        if setting.judge.url is None:
            members.complain("model", "no endpoint to ask it at", _URL_HINT)
        self._judge = replace(
            setting.judge, model=members.text("model"), extra={**setting.judge.extra, **extra}
        )
        self._endpoint = Endpoint(self._judge)
        self.at_once = setting.judge.concurrency

    #: whether the wire form has `sampling_params`.
    _has_sampling = False

    @property
    @abstractmethod
    def _request(self) -> str:
        """What is added to the last message: how to answer."""

    @abstractmethod
    def _read(self, reply: str) -> Any:
        """What a reply says; None if it says nothing."""

    def _asked(self, item: Mapping[str, Any], sample: Sample) -> tuple[Any, dict[str, Any]]:
        """What the model says, and its reply; raises `Ungraded`."""
        messages = [
            {"role": role, "content": text.fill(item, sample)} for role, text in self._messages
        ]
        messages[-1]["content"] += f"\n\n{self._request}"
        try:
            found, reply = self._endpoint.reading(messages, self._read)
        except Declined as error:
            raise Ungraded("model_grader_refusal_error", str(error)) from error
        except (Unanswered, ConfigError) as error:
            raise Ungraded("model_grader_server_error", str(error)) from error
        if found is None:
            message = f"no line that was asked for at the end of {reply[-200:]!r}"
            raise Ungraded("model_grader_parse_error", message, reply=reply)
        return found, {"reply": reply}

    def close(self) -> None:
        """Make no new tries of what is asked now."""
        self._endpoint.close()
        self._endpoint = Endpoint(self._judge)


_URL_HINT = (
    "give the address of an OpenAI-compatible service: --judge-url http://localhost:8000/v1, in a"
    " config eval.judge.url=http://localhost:8000/v1"
)


class ScoreModelGrader(_JudgedGrader):
    """The number in the last line of the reply, `Score: 0.7`, within the range."""

    _has_sampling = True

    def __init__(self, members: Members, setting: Setting) -> None:
        """Read messages, model, sampling and range."""
        super().__init__(members, setting)
        self.range = members.span("range", (0.0, 1.0))

    @property
    def _request(self) -> str:
        low, high = self.range
        return (
            "Give your reasons in at most three sentences. Then end with one line, which is"
            f' "Score: " and a number from {low:g} to {high:g}.'
        )

    def _read(self, reply: str) -> float | None:
        said = re.fullmatch(r"score: *([-+]?\d+(?:\.\d+)?|[-+]?\.\d+)\.?", _last(reply), re.I)
        score = float(said[1]) if said else None
        return score if score is not None and self.range[0] <= score <= self.range[1] else None

    def score(self, item: Mapping[str, Any], sample: Sample) -> Grade:
        """The number, with the reply."""
        score, about = self._asked(item, sample)
        return Grade(score, metadata=about)


class LabelModelGrader(_JudgedGrader):
    """1 if the label in the last line of the reply, `Label: good`, is a passing one, else 0."""

    def __init__(self, members: Members, setting: Setting) -> None:
        """Read messages, model and labels."""
        super().__init__(members, setting)
        self._labels = members.texts("labels")
        self._passing = members.texts("passing_labels")
        if others := sorted(set(self._passing) - set(self._labels)):
            members.complain("passing_labels", f"{others} are no labels", "name some of `labels`")
        self._known = {_plain(label): label for label in self._labels}
        if len(self._known) < len(self._labels):
            hint = "let them differ in more than case, quotes and stars"
            members.complain("labels", "two of them cannot be told apart", hint)

    @property
    def _request(self) -> str:
        return (
            "Give your reasons in at most three sentences. Then end with one line, which is"
            f' "Label: " and one of these: {", ".join(self._labels)}.'
        )

    def _read(self, reply: str) -> str | None:
        kind, _, label = _last(reply).partition(":")
        return self._known.get(_plain(label)) if kind.lower() == "label" else None

    def score(self, item: Mapping[str, Any], sample: Sample) -> Grade:
        """1 or 0, with label and reply."""
        label, about = self._asked(item, sample)
        return Grade(float(label in self._passing), metadata={"label": label, **about})


def _last(reply: str) -> str:
    """The last line that says something, without adornment: others may quote the question."""
    lines = [line.strip() for line in reply.translate(_ADORNMENT).splitlines() if line.strip()]
    return lines[-1] if lines else ""


def _plain(label: str) -> str:
    return label.translate(_ADORNMENT).strip().rstrip(".").casefold()


def _messages(members: Members) -> list[tuple[str, Template]]:
    """Role and text of each message."""
    found = members.value("input", needed=True)
    if not isinstance(found, list) or not found:
        hint = 'write a list of {"role": "user", "content": "..."}'
        members.complain("input", "no messages", hint)
        return []
    return [_message(one, f"input[{number}]", members) for number, one in enumerate(found)]


def _message(value: Any, name: str, members: Members) -> tuple[str, Template]:
    fields = value if isinstance(value, Mapping) else {}
    if fields.get("role") not in _ROLES:
        members.complain(f"{name}.role", f"{fields.get('role')!r}", "one of " + ", ".join(_ROLES))
    for other in fields.keys() - {"role", "content", "type"}:
        members.complain(f"{name}.{other}", "a message has no such member", "leave it out")
    if fields.get("type", "message") != "message":
        members.complain(f"{name}.type", f"{fields['type']!r}", "write message, or leave it out")
    content = fields.get("content")
    parts = [_text(part) for part in (content if isinstance(content, list) else [content])]
    if None in parts or not parts:
        hint = 'write a text or {"type": "input_text", "text": "..."}; no images and sounds'
        members.complain(f"{name}.content", "not only texts", hint)
    role = "system" if fields.get("role") == "developer" else str(fields.get("role"))
    return role, members.filled("\n".join(part or "" for part in parts), f"{name}.content")


def _text(part: Any) -> str | None:
    if isinstance(part, Mapping) and part.get("type") in _TEXTS and part.keys() == {"type", "text"}:
        part = part["text"]
    return part if isinstance(part, str) else None
