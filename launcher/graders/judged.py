"""Models behind an OpenAI-compatible endpoint that give a score or a label."""

from __future__ import annotations

import re
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from launcher.config.schema import JudgeConfig
from launcher.core import streams
from launcher.core.errors import ConfigError
from launcher.graders.endpoint import Declined, Endpoint, EndpointRefusal, Unanswered
from launcher.graders.errors import Ungraded
from launcher.graders.grader import MAX_SCORE, Grade, Grader, Setting
from launcher.graders.members import Members
from launcher.graders.sample import Sample
from launcher.graders.template import Template
from launcher.graders.usage import Usage

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
#: Seconds between two times that what endpoints say of themselves is told in full.
_TELLS_AGAIN_S = 10.0
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
        self.model = members.text("model")
        judge = _judge_of(self.model, setting, members)
        self._judge = replace(judge, extra={**judge.extra, **extra})
        self._told_at = float("-inf")
        try:
            self._endpoint = Endpoint(self._judge)
        except ConfigError as error:
            if setting.judges is None:
                raise
            # Whoever wrote the grader may not know what the key is called.
            streams.remark(f"warning: {self.model} cannot be asked: {error}")
            found = f"{self.model!r} cannot be asked: its key is no key"
            raise ConfigError(found, where="judges", hint="the site's log says which") from error
        self.at_once = judge.concurrency

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
        except (Unanswered, EndpointRefusal) as error:
            self._note(error)
            is_declined = isinstance(error, Declined)
            kind = f"model_grader_{'refusal' if is_declined else 'server'}_error"
            found = f"{self.model} {'declines' if is_declined else 'does not answer'}: {error.told}"
            is_passing = not isinstance(error, Declined | EndpointRefusal)
            raise Ungraded(kind, found, is_passing=is_passing) from error
        if found is None:
            message = f"no line that was asked for at the end of {reply[-200:]!r}"
            raise Ungraded("model_grader_parse_error", message, reply=reply)
        return found, {"reply": reply}

    def _note(self, error: Exception) -> None:
        """Say in full on stderr, of many once in a while, what stands in no grade: grades are read
        by who may not know where an endpoint is, and what it says of itself."""
        now = time.monotonic()
        if now - self._told_at > _TELLS_AGAIN_S:
            self._told_at = now
            streams.remark(
                f"warning: the grader {self.name} has no answer of {self.model}: {error}"
            )

    def usage(self) -> dict[str, Usage]:
        """Tokens that the model has read and written so far."""
        return {self.model: self._endpoint.usage}

    def close(self) -> None:
        """Make no new tries of what is asked now."""
        self._endpoint.close()
        self._endpoint = Endpoint(self._judge)


def _judge_of(model: str, setting: Setting, members: Members) -> JudgeConfig:
    """The endpoint of a model; a problem of `members` where there is none."""
    if setting.judges is None:
        if setting.judge.url is None:
            members.complain("model", "no endpoint to ask it at", _URL_HINT)
        return replace(setting.judge, model=model)
    if model in setting.judges:
        judge = setting.judges[model]
        return replace(judge, model=judge.model or model)
    if model:
        known = ", ".join(sorted(setting.judges)) or "none at all"
        members.complain("model", f"{model!r} is no judge that may be asked", f"there are: {known}")
    return replace(setting.judge, model=model)


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
        if max(map(abs, self.range)) > MAX_SCORE:
            hint = f"stay within {-MAX_SCORE:,.0f} to {MAX_SCORE:,.0f}"
            members.complain("range", "is wider than that of any score", hint)

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
