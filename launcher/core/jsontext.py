"""JSON as text: a decoder that loses nothing, and why a text is no JSON."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any


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


DECODER = json.JSONDecoder(object_pairs_hook=one_of_each)


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
