"""JSON as text: a decoder that loses nothing, and why a text is no JSON."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from typing import Any, NoReturn

#: Deeper values are none that a service keeps or sends.
MOST_DEPTH = 64
#: Of what a client has sent, so much is sent back in a message.
SHOWN = 100
_HALF = re.compile("[\ud800-\udfff]")
#: How JSON writes what cannot be kept: the character U+0000, or half a character.
_ESCAPED = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")


class Repeated(ValueError):
    """A key that an object has twice."""


def one_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, as a decoder's `object_pairs_hook`: of two values for one key, neither may be
    lost unsaid. Raises `Repeated` with the key."""
    found = dict(pairs)
    if len(found) < len(pairs):
        times = Counter(key for key, _ in pairs)
        raise Repeated(next(key for key in times if times[key] > 1))
    return found


def no_constant(name: str) -> NoReturn:
    """A decoder's `parse_constant`: `ValueError` for NaN and the infinities."""
    raise ValueError(f"{name} is no JSON")


def finite(digits: str) -> float:
    """A decoder's `parse_float`: `ValueError` for what is written back as an infinity."""
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {short(digits)} is too large")
    return number


def short(text: str) -> str:
    """So much of it as a message shows."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def unkept(value: Any, text: bytes, most_depth: int = MOST_DEPTH) -> str | None:
    """Why a value cannot be kept and sent, which was read from `text`; None if it can be."""
    if not _ESCAPED.search(text) and text.count(b"{") + text.count(b"[") <= most_depth:
        return None
    level, depth = [value], 0
    while level:
        if depth > most_depth:
            return "it is nested too deeply"
        inner: list[Any] = []
        for item in level:
            if isinstance(item, str):
                if "\0" in item:
                    return "a string holds the character U+0000"
                if _HALF.search(item):
                    return "a string holds half a character (a lone surrogate)"
            elif isinstance(item, dict):
                inner += [*item.keys(), *item.values()]
            elif isinstance(item, list):
                inner += item
        level, depth = inner, depth + 1
    return None


DECODER = json.JSONDecoder(object_pairs_hook=one_of_each)
#: The same for what is sent on: each number that it reads can be written.
STRICT = json.JSONDecoder(
    object_pairs_hook=one_of_each, parse_constant=no_constant, parse_float=finite
)


def why_not(error: Exception) -> tuple[str, str]:
    """What is wrong with a text that the decoder refuses, and what to do about it."""
    if isinstance(error, json.JSONDecodeError):
        found = f"broken JSON at column {error.colno}: {error.msg}"
        return found, "every line must be one complete JSON object"
    if isinstance(error, Repeated):
        found = f"the key {str(error)!r} is there twice in one object"
        return found, "keep one of the two: which one is meant cannot be told"
    deep = isinstance(error, RecursionError)
    what = "lists or objects nested too deep" if deep else "a number of too many digits"
    return f"JSON that cannot be read: {what}", "mend or remove the line"
