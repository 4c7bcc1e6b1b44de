"""What a sweep's command line varies: Hydra's sweep syntax, read into dimensions.

A value of a list stays what was typed: the trial gets the word that a single run would be given.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from itertools import product
from typing import Any

from launcher.config.compose import ownfile
from launcher.config.schema import values
from launcher.core.errors import ConfigError, Problem

#: Draws without a new combination after which a space of few counts as exhausted, for each trial.
_TRIES = 100


@dataclass(frozen=True, slots=True)
class Dimension:
    """One override with several values: a list of them, or an interval of numbers."""

    key: str
    text: str
    """Right-hand side as typed."""
    values: tuple[str, ...] = ()
    """The values to choose from, as typed; () for an interval."""
    numbers: bool = False
    """Whether the values come from a range and so have an order."""
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    """Interval: whether its logarithm is uniform."""
    whole: bool = False
    """Interval: whether only whole numbers count."""

    def word(self, value: Any) -> str:
        """The override that sets this dimension to `value`."""
        if isinstance(value, float):
            # Six digits are more than a learning rate means, and can be read.
            value = f"{value:.6g}"
        return f"{self.key}={value}"

    def draw(self, chance: random.Random) -> str:
        """A random value of it, as an override."""
        if self.values:
            return self.word(chance.choice(self.values))
        if self.log:
            value = math.exp(chance.uniform(math.log(self.low), math.log(self.high)))
            return self.word(round(value) if self.whole else value)
        if self.whole:
            return self.word(chance.randint(int(self.low), int(self.high)))
        return self.word(chance.uniform(self.low, self.high))


@dataclass(slots=True)
class Space:
    """A sweep's command line, taken apart."""

    fixed: list[str] = field(default_factory=list)
    """Overrides that all trials share, as typed."""
    swept: dict[str, Dimension] = field(default_factory=dict)
    """Key -> what varies, in the order of the command line."""
    hydra: list[str] = field(default_factory=list)
    """Overrides of Hydra's own settings: `hydra/sweeper=...`, `hydra.sweeper....`."""

    def corners(self, count: int) -> list[list[str]]:
        """Up to `count` combinations of first, then last and random values, to check them."""
        chance = random.Random(0)  # noqa: S311 - reproducible on purpose
        ends = [_ends(dimension) for dimension in self.swept.values()]
        found = [[pair[side] for pair in ends] for side in (0, 1)]
        found += [[d.draw(chance) for d in self.swept.values()] for _ in range(count - 2)]
        return found


def read(words: Sequence[str], options: Mapping[str, Sequence[str]]) -> Space:
    """Take a command line apart; `options` as in `list_groups`.

    Raises `ConfigError` for sweep syntax that cannot be used.
    """
    space, problems = Space(), []
    for word in words:
        key, _, text = word.partition("=")
        if ownfile.is_named(word):
            space.fixed.append(word)
            continue
        if key.lstrip("+~").startswith(("hydra.", "hydra/")):
            space.hydra.append(word)
            continue
        try:
            dimension = _dimension(key, text, options)
        except ValueError as error:
            problems.append(Problem(key, f"{text!r}: {error}", _SYNTAX))
            continue
        space.swept.pop(key, None)  # the last of two wins
        if dimension is None:
            space.fixed.append(word)
            continue
        space.fixed = [other for other in space.fixed if other.partition("=")[0] != key]
        space.swept[key] = dimension
    if problems:
        raise ConfigError(problems)
    return space


_SYNTAX = (
    "a,b,c or choice(...), range(start,stop,step), interval(low,high), glob(pattern); "
    "text with commas or brackets needs quotes of its own"
)


def grid(space: Space) -> list[list[str]]:
    """All combinations; `ConfigError` if there is an interval."""
    for dimension in space.swept.values():
        if not dimension.values:
            raise ConfigError(
                f"{dimension.text} has no end of values for a grid",
                where=dimension.key,
                hint="list values, or choose them with sweep=random or sweep=optuna",
            )
    options = [[d.word(value) for value in d.values] for d in space.swept.values()]
    return [list(words) for words in product(*options)]


def draws(space: Space, count: int, seed: int) -> list[list[str]]:
    """`count` different random combinations, fewer if there are no more; the same for a seed."""
    chance = random.Random(seed)  # noqa: S311 - reproducible on purpose
    found: dict[tuple[str, ...], None] = {}
    for _ in range(count * _TRIES):
        if len(found) == count:
            break
        found.setdefault(tuple(d.draw(chance) for d in space.swept.values()))
    return [list(words) for words in found]


def _dimension(key: str, text: str, options: Mapping[str, Sequence[str]]) -> Dimension | None:
    """What a value varies over; None if it is one value. `ValueError` if that cannot be told."""
    if values.function(text) is not None:
        return _from_function(key, text, options)
    found = _listed(text) if "," in text else []
    return Dimension(key, text, tuple(found)) if len(found) > 1 else None


def _listed(text: str) -> list[str]:
    found = values.parts(text)
    if len(found) > 1 and "" in found:
        raise ValueError("there is nothing between two commas")
    if len(found) > 1 and any(values.function(each) for each in found):
        raise ValueError("a function stands for all values of a key")
    return found


def _from_function(key: str, text: str, options: Mapping[str, Sequence[str]]) -> Dimension | None:
    called = values.function(text)
    assert called is not None
    name, inside = called
    if name == "choice":  # the values alone, of whatever letters
        return Dimension(key, text, tuple(_listed(inside)))
    from hydra.errors import HydraException

    from launcher.config.compose import hydra

    parser = hydra.parser(options)
    # Keys may be such that its grammar has no word for them; of groups it lists the options.
    name = key if key in options else "key"
    try:
        (parsed,) = parser.parse_overrides([f"{name}={text}"])
        if not parsed.is_sweep_override():
            return None  # a cast
        return _of_hydra(key, text, parsed)
    except HydraException as error:
        raise ValueError(str(error).splitlines()[0]) from error


def _of_hydra(key: str, text: str, parsed: Any) -> Dimension:
    value = parsed.value()
    if not parsed.is_interval_sweep():
        typed = _typed(text)
        found = tuple(typed.get(each, each) for each in parsed.sweep_string_iterator())
        if parsed.is_range_sweep() and not (value.shuffle or "sort(" in text):
            found = _steps(value.start, value.stop, value.step)
        if not found:
            raise ValueError("it holds no value")
        return Dimension(key, text, found, numbers=parsed.is_range_sweep())
    low, high = value.start, value.end
    log, whole = "log" in value.tags, isinstance(low, int) and isinstance(high, int)
    if not low < high:
        raise ValueError("the low end must be below the high end")
    if log and low <= 0:
        raise ValueError("a logarithmic interval must be above 0")
    return Dimension(key, text, low=float(low), high=float(high), log=log, whole=whole)


def _typed(text: str) -> dict[str, str]:
    """Hydra's text of each value inside `sort(...)` and the like -> as it was typed."""
    called = values.function(text)
    while called is not None:
        name, inside = called
        if name in ("range", "int", "float", "str", "bool"):
            break
        found = values.parts(inside)
        called = next((inner for each in found if (inner := values.function(each))), None)
        if called is None:
            return {hydra_text(each): each for each in found}
    return {}


def _steps(start: float, stop: float, step: float) -> tuple[str, ...]:
    """The numbers of a range as people count: 0.1, 0.2, 0.3, and not its end, which steps of
    floats may miss."""
    first, last, each = (Decimal(repr(number)) for number in (start, stop, step))
    count = math.ceil((last - first) / each) if each else 0
    numbers = [first + each * n for n in range(count)]
    is_whole = all(isinstance(number, int) for number in (start, step))
    return tuple(str(int(n)) if is_whole else repr(float(n)) for n in numbers)


@cache
def _parser() -> Any:
    from launcher.config.compose import hydra

    return hydra.parser()


def hydra_text(text: str) -> str:
    """What Hydra makes of one value of a list; itself if it has no word for it."""
    from hydra.errors import HydraException

    try:
        parsed = _parser().parse_override(f"key=choice({text})")
        (found,) = parsed.sweep_string_iterator()
    except (HydraException, ValueError):
        return text
    return str(found)


def _ends(dimension: Dimension) -> tuple[str, str]:
    if dimension.values:
        first, last = dimension.values[0], dimension.values[-1]
    else:
        cast = int if dimension.whole else float
        first, last = cast(dimension.low), cast(dimension.high)  # type: ignore[assignment]
    return dimension.word(first), dimension.word(last)
