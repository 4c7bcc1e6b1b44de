"""Templates: texts with places such as `{{ item.answer }}` and `{{ sample.output_json.a[0] }}`."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from launcher.core.errors import ConfigError, did_you_mean
from launcher.graders.errors import Ungraded
from launcher.graders.sample import FIELDS, Sample

#: What is between has no such braces itself, so that many that are never closed cost little.
_PLACE = re.compile(r"\{\{((?:(?!\{\{|\}\}).)*)\}\}", re.DOTALL)
_STEP = re.compile(r"""\.\s*([\w-]+)|\[\s*(-?\d+)\s*\]|\[\s*(?:"([^"\]]*)"|'([^'\]]*)')\s*\]""")
_ROOT = re.compile(r"\s*(\w+)")

#: Most places of all templates of a grader, and most keys and indexes of one place: each is looked
#: up in each line of the data.
MAX_PLACES, MAX_STEPS = 1_000, 32

_HINT = "write {{ item.FIELD }}, {{ sample.output_text }} or {{ sample.output_json.FIELD }}"


class TemplatePlace:
    """A place: where it begins, and the keys and indexes that lead on."""

    def __init__(self, text: str, where: str) -> None:
        self.text = text.strip()
        root = _ROOT.match(text)
        at, steps = (root.end() if root else 0), []
        while root and (step := _STEP.match(text, at)):
            name = next(part for part in step.groups() if part is not None)
            steps.append(int(name) if step[2] is not None else name)
            at = step.end()
        if root is None or text[at:].strip() or not steps:
            raise ConfigError(f"{{{{{text}}}}} names nothing", where=where, hint=_HINT)
        if len(steps) > MAX_STEPS:
            found = f"{{{{{text[:80]}...}}}} leads on {len(steps):,} times"
            raise ConfigError(found, where=where, hint=f"{MAX_STEPS} are allowed")
        self.root, self.steps = root[1], steps
        if self.root not in ("item", "sample"):
            hint = did_you_mean(self.root, ("item", "sample"))
            raise ConfigError(f"{{{{{text}}}}}: unknown {self.root!r}", where=where, hint=hint)
        if self.root == "sample" and steps[0] not in FIELDS:
            hint = did_you_mean(str(steps[0]), FIELDS)
            found = f"{{{{{text}}}}}: a sample has no {steps[0]!r}"
            raise ConfigError(found, where=where, hint=hint)

    @property
    def key(self) -> tuple[str | int, ...]:
        """What it names, however it is written."""
        return self.root, *self.steps

    def is_in(self, item: Mapping[str, Any]) -> bool:
        """Whether an item has a value for it; it is one of items."""
        try:
            _follow(item, self.steps)
        except LookupError:
            return False
        return True

    def of(self, item: Mapping[str, Any], sample: Sample) -> Any:
        """The value; raises `Ungraded` if there is none."""
        try:
            if self.root == "item":
                return _follow(item, self.steps)
            return _follow(getattr(sample, str(self.steps[0])), self.steps[1:])
        except LookupError as error:
            kind = "invalid_variable_error" if self.root == "item" else "sample_parse_error"
            raise Ungraded(kind, f"there is no {self.text}: {error.args[0]}") from error


def _follow(value: Any, steps: list[str | int]) -> Any:
    """The value that the steps lead to; `LookupError` if they lead nowhere."""
    for step in steps:
        if isinstance(value, list | tuple) and str(step).lstrip("-").isdecimal():
            index = int(step)
            if not -len(value) <= index < len(value):
                raise LookupError(f"a list of {len(value)} has no [{index}]")
            value = value[index]
        elif isinstance(value, Mapping) and str(step) in value:
            value = value[str(step)]
        else:
            raise LookupError(f"no {step!r} in {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"an object of {', '.join(map(str, islice(value, 8))) or 'nothing'}"
    return "a list" if isinstance(value, list | tuple) else f"a {type(value).__name__}"


class TooLongError(Exception):
    """A template is longer, filled, than was allowed."""


class Template:
    """A text with places for fields of an item and of a sample.

    Raises `ConfigError` for a place that can name nothing, and for too many of them.
    """

    def __init__(self, text: str, where: str) -> None:
        self.text = text
        self._parts: list[str | TemplatePlace] = []
        self.places: list[TemplatePlace] = []
        """Its places, in their order."""
        end = 0
        for place in _PLACE.finditer(text):
            if len(self.places) == MAX_PLACES:
                found, hint = too_many_places()
                raise ConfigError(found, where=where, hint=hint)
            self.places.append(TemplatePlace(place[1], where))
            self._parts += [text[end : place.start()], self.places[-1]]
            end = place.end()
        self._parts.append(text[end:])

    def fill(
        self, item: Mapping[str, Any], sample: Sample, most_bytes: float = float("inf")
    ) -> str:
        """The text with all places filled: texts as they are, all else as JSON.

        Raises `Ungraded` if a place has no value, and `TooLongError` as soon as it is known that
        the text has more than `most_bytes` in UTF-8.
        """
        texts: list[str] = []
        known: dict[tuple[str | int, ...], str] = {}
        size = 0
        for part in self._parts:
            if isinstance(part, str):
                text = part
            else:
                if part.key not in known:
                    known[part.key] = _shown(part.of(item, sample))
                text = known[part.key]
            size += len(text) if text.isascii() else len(text.encode(errors="surrogatepass"))
            if size > most_bytes:
                raise TooLongError
            texts.append(text)
        return "".join(texts)


def too_many_places() -> tuple[str, str]:
    """What is said of templates with more than `MAX_PLACES`, and what to do."""
    found = f"more than {MAX_PLACES:,} places such as {{{{ item.FIELD }}}}"
    return found, "name each field once or twice"


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
