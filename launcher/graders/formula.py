"""Formulas over named numbers, such as `0.7 * correct + 0.3 * min(style, 0.5)`.

    sum     = product {("+" | "-") product}
    product = sign {("*" | "/") sign}
    sign    = {"-" | "+"} power
    power   = atom ["^" sign]
    atom    = NUMBER | NAME | FUNCTION "(" sum {"," sum} ")" | "(" sum ")"

As usual -2^2 is -4, and 2^3^2 is 2^9.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence

from launcher.core.errors import ConfigError, did_you_mean

#: Function -> how many arguments it takes (least, most) and what it is.
FUNCTIONS: dict[str, tuple[int, int, Callable[..., float]]] = {
    "min": (1, 32, lambda *values: min(values)),
    "max": (1, 32, lambda *values: max(values)),
    "abs": (1, 1, abs),
    "floor": (1, 1, math.floor),
    "ceil": (1, 1, math.ceil),
    "exp": (1, 1, math.exp),
    "sqrt": (1, 1, math.sqrt),
    "log": (1, 1, math.log),
}
MAX_LENGTH, MAX_DEPTH = 2_000, 50

_TOKEN = re.compile(r"\s*(?:((?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)|([A-Za-z_]\w*)|([-+*/^(),]))")
_BINARY: dict[str, Callable[[float, float], float]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "^": math.pow,
}

#: What a part of a formula is once it is read.
_Part = Callable[[Mapping[str, float]], float]


class Formula:
    """A formula over some of the names `known`; `ConfigError` if it cannot be read."""

    def __init__(self, text: str, known: Collection[str], where: str) -> None:
        self.names: set[str] = set()
        self._known, self._where, self._text = known, where, text
        if len(text) > MAX_LENGTH:
            raise self._error(f"{len(text):,} characters", f"{MAX_LENGTH:,} are allowed")
        self._tokens, self._depth = list(self._split()), 0
        self._value = self._sum()
        if self._tokens:
            raise self._error(f"{self._tokens[0]!r} is left over", "write an operator before it")

    def value(self, numbers: Mapping[str, float]) -> float:
        """The value for these numbers; `ArithmeticError` or `ValueError` if it has none."""
        return float(self._value(numbers))

    def _split(self) -> list[str]:
        found, at = [], 0
        text = self._text.rstrip()
        while at < len(text):
            token = _TOKEN.match(text, at)
            if token is None:
                hint = "numbers, names, + - * / ^, parentheses and functions are allowed"
                raise self._error(f"{text[at:].strip()[:20]!r} at {at + 1}", hint)
            found.append(next(part for part in token.groups() if part is not None))
            at = token.end()
        return found

    def _error(self, found: str, hint: str) -> ConfigError:
        return ConfigError(f"{self._text[:100]!r}: {found}", where=self._where, hint=hint)

    def _take(self, *wanted: str) -> str | None:
        return self._tokens.pop(0) if self._tokens and self._tokens[0] in wanted else None

    def _need(self, wanted: str) -> None:
        if self._take(wanted) is None:
            raise self._error(f"{wanted!r} is missing", "close what is open")

    def _sum(self) -> _Part:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH}", "write it flatter")
        part = self._chain(self._product, "+", "-")
        self._depth -= 1
        return part

    def _product(self) -> _Part:
        return self._chain(self._sign, "*", "/")

    def _chain(self, read: Callable[[], _Part], *operators: str) -> _Part:
        first, rest = read(), []
        while (sign := self._take(*operators)) is not None:
            rest.append((_BINARY[sign], read()))
        return _chained(first, rest) if rest else first

    def _sign(self) -> _Part:
        minus = False
        while (sign := self._take("-", "+")) is not None:
            minus ^= sign == "-"
        part = self._power()
        return (lambda numbers: -part(numbers)) if minus else part

    def _power(self) -> _Part:
        part = self._atom()
        if self._take("^") is None:
            return part
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH}", "write it flatter")
        exponent = self._sign()
        self._depth -= 1
        return _chained(part, [(_BINARY["^"], exponent)])

    def _atom(self) -> _Part:
        if self._take("(") is not None:
            part = self._sum()
            self._need(")")
            return part
        token = self._tokens.pop(0) if self._tokens else ""
        if token[:1].isdigit() or token[:1] == ".":
            number = float(token)
            return lambda numbers: number
        if token in FUNCTIONS and self._take("(") is not None:
            return self._call(token)
        if token in self._known:
            self.names.add(token)
            return lambda numbers: numbers[token]
        if token[:1].isalpha() or token[:1] == "_":
            hint = did_you_mean(token, {*self._known, *FUNCTIONS})
            raise self._error(f"unknown name {token!r}", hint)
        raise self._error(
            f"a value is missing before {token!r}" if token else "it ends too early",
            "write a number, a name or a function there",
        )

    def _call(self, name: str) -> _Part:
        least, most, function = FUNCTIONS[name]
        parts = [self._sum()]
        while self._take(",") is not None:
            parts.append(self._sum())
        self._need(")")
        if not least <= len(parts) <= most:
            raise self._error(f"{name} of {len(parts)} values", f"it takes {most}")
        return lambda numbers: function(*(part(numbers) for part in parts))


def _chained(first: _Part, rest: Sequence[tuple[Callable[[float, float], float], _Part]]) -> _Part:
    """From left to right, in a loop: however long it is, it nests no deeper."""

    def value(numbers: Mapping[str, float]) -> float:
        found = first(numbers)
        for function, part in rest:
            found = function(found, part(numbers))
        return found

    return value
