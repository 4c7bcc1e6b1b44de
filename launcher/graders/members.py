"""The members of a grader's wire form, read one by one: what is wrong, and what is left over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launcher.core.errors import ConfigError, Problem, did_you_mean
from launcher.graders.template import MAX_PLACES, Template, too_many_places

#: Largest texts (characters), lists and nesting of a wire form, so that reading one costs little.
MAX_TEXT, MAX_VALUES, MAX_DEPTH = 256 << 10, 10_000, 32


class Members:
    """The members of one grader; each reader notes what is wrong, and `require` raises it all."""

    def __init__(self, content: Mapping[str, Any], where: str) -> None:
        self.content = dict(content)
        self.where = where
        self.templates: list[Template] = []
        self._places = 0
        self._problems: list[Problem] = []
        self._read = {"type"}

    def at(self, name: str) -> str:
        """How a member is called in errors."""
        return f"{self.where}.{name}"

    def complain(self, name: str, found: str, hint: str = "") -> None:
        """Note a problem of a member."""
        self._problems.append(Problem(self.at(name), found, hint))

    def value(self, name: str, default: Any = None, *, needed: bool = False) -> Any:
        """A member as it is; null is as good as none."""
        self._read.add(name)
        found = self.content.get(name)
        if found is None and needed:
            self.complain(name, "is missing", "see docs/graders.md for what each grader takes")
        return default if found is None else found

    def text(self, name: str, default: str | None = None) -> str:
        """A text that is not empty; without a `default` it is needed."""
        found = self.value(name, default, needed=default is None)
        if found is not None and (not isinstance(found, str) or not found.strip()):
            self.complain(name, f"{_short(found)} is no text", "write a text")
        return found if isinstance(found, str) else ""

    def template(self, name: str, default: str | None = None) -> Template:
        """A text with places; an empty one is one too."""
        found = self.value(name, default, needed=default is None)
        if found is not None and not isinstance(found, str):
            self.complain(name, f"{_short(found)} is no text", "write a text, in quotes")
        return self.filled(found if isinstance(found, str) else "", name)

    def filled(self, text: str, name: str) -> Template:
        """A template of this grader that was read from a member `name`."""
        try:
            template = Template(text, self.at(name))
        except ConfigError as error:
            self._problems += error.problems
            return Template("", name)
        self.templates.append(template)
        before, self._places = self._places, self._places + len(template.places)
        if before <= MAX_PLACES < self._places:
            self.complain(name, *too_many_places())
        return template

    def choice(self, name: str, known: Sequence[str], default: str | None = None) -> str:
        """One of `known`."""
        found = self.value(name, default, needed=default is None)
        if found is not None and found not in known:
            hint = did_you_mean(str(found), known)
            self.complain(name, f"{_short(found)} is none of them", hint)
        return found if found in known else known[0]

    def number(self, name: str, default: float, *, least: float | None = None) -> float:
        """A number, at least `least`."""
        found = self.value(name, default)
        if not is_number(found) or (least is not None and found < least):
            wanted = "a number" if least is None else f"a number from {least:g} on"
            self.complain(name, f"{_short(found)} is not {wanted}", f"write {wanted}")
            return default
        return float(found)

    def span(self, name: str, default: tuple[float, float]) -> tuple[float, float]:
        """Two numbers, the second higher."""
        found = self.value(name, list(default))
        if not (
            isinstance(found, list)
            and len(found) == 2
            and all(map(is_number, found))
            and found[0] < found[1]
        ):
            hint = "write two numbers, the lower one first, such as [0, 1]"
            self.complain(name, f"{_short(found)} is no range", hint)
            return default
        return float(found[0]), float(found[1])

    def texts(self, name: str, default: Sequence[str] | None = None) -> list[str]:
        """A list of one or more texts, none of them twice."""
        found = self.value(name, None if default is None else list(default), needed=default is None)
        if found is None:
            return []
        if not (isinstance(found, list) and all(isinstance(one, str) for one in found)):
            self.complain(name, f"{_short(found)} is no list of texts", 'write ["one", "other"]')
            return []
        if default is None and (not found or len(set(found)) < len(found)):
            self.complain(name, "is empty, or has one text twice", "name each once")
        return found

    def mapping(self, name: str, default: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """An object."""
        found = self.value(name, default, needed=default is None)
        if found is not None and not isinstance(found, Mapping):
            self.complain(name, f"{_short(found)} is no object", "write NAME: VALUE pairs")
        return dict(found) if isinstance(found, Mapping) else {}

    def require(self) -> None:
        """`ConfigError` with all that was wrong, members that nobody has read too."""
        for name in self.content.keys() - self._read:
            hint = did_you_mean(str(name), sorted(self._read))
            self.complain(str(name), f"{self.content.get('type')} has no such member", hint)
        if self._problems:
            raise ConfigError(sorted(self._problems, key=lambda problem: problem.where))


def require_small(value: Any, where: str) -> None:
    """`ConfigError` for a wire form that is too large, too deep or no JSON."""
    for count, (depth, found) in enumerate(_walk(value), start=1):
        if depth > MAX_DEPTH or count > MAX_VALUES:
            what = f"nested deeper than {MAX_DEPTH}" if depth > MAX_DEPTH else "too many values"
            raise ConfigError(what, where=where, hint="a grader is smaller than that")
        if isinstance(found, str) and not _is_encodable(found):
            what = f"{_short(ascii(found))} holds half a character, a lone surrogate"
            raise ConfigError(what, where=where, hint="write whole characters")
        if isinstance(found, str) and len(found) > MAX_TEXT:
            raise ConfigError(
                f"a text of {len(found):,} characters",
                where=where,
                hint=f"{MAX_TEXT:,} are allowed",
            )
        if not isinstance(found, str | int | float | bool | list | dict | None):
            hint = "put it in quotes to make a text of it"
            raise ConfigError(f"{_short(found)} is no JSON", where=where, hint=hint)


def _walk(value: Any) -> Iterator[tuple[int, Any]]:
    left = [(0, value)]
    while left:
        depth, found = left.pop()
        yield depth, found
        if isinstance(found, dict):
            left += [(depth + 1, part) for pair in found.items() for part in pair]
        elif isinstance(found, list):
            left += [(depth + 1, part) for part in found]


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def is_number(value: Any) -> bool:
    """Whether it is a number that can be reckoned with: no bool, none beyond 1e300, no NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
