"""One grammar for values, on the command line and in YAML files: what was typed, by its type.

Text is what was typed. Numbers, truth values and null are read by one rule, whichever way they
came, and only where the field is not text: `12.10`, `007` and `yes` stay that in a text field.

On the command line a value wholly in quotes is the text between them, `[a, b]` is a list,
`{a: b}` a mapping, and commas at the top separate the values of a sweep. As in Hydra's grammar a
backslash before the quote keeps it, and a run of backslashes there counts half.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any

_INTEGER = re.compile(r"[-+]?(0|[1-9](_?[0-9])*)")
_FLOAT = re.compile(
    r"[-+]?(([0-9](_?[0-9])*)?\.[0-9](_?[0-9])*|[0-9](_?[0-9])*\.?)([eE][-+]?[0-9](_?[0-9])*)?"
    r"|[-+]?\.?(inf|nan)",
    re.IGNORECASE,
)
_QUOTES = "'\""
_OPEN = {"[": "]", "{": "}", "(": ")"}

#: In mappings of a mixture of data: the keys that are numbers; the others are text.
_SHARES = ("weight", "epochs", "limit")


#: Hydra's functions of values: those that make sweeps, and casts.
_FUNCTIONS = ("choice", "range", "interval", "glob", "sort", "shuffle", "tag") + (
    *("int", "float", "str", "bool", "json_str", "extend_list"),
)
_CALL = re.compile(rf"({'|'.join(_FUNCTIONS)})\((.*)\)", re.DOTALL)


class Source:
    """In the place of a type: a file or hub name, a list of these, or mappings of a mixture."""


@dataclass(frozen=True, slots=True)
class Word:
    """A scalar: its text, and whether quotes or a tag say that it is text and nothing else."""

    text: str
    is_text: bool = False

    @property
    def value(self) -> Any:
        """What it is where no type says: null, a truth value, a number, or text."""
        return self.text if self.is_text else scalar(self.text)


#: A value with its scalars as they were typed.
Node = Word | list["Node"] | dict[str, "Node"] | None


def scalar(text: str) -> Any:
    """What a bare word means; a number of another form, such as 007 or 0x10, is text."""
    if text.lower() in ("null", "true", "false"):
        return {"null": None, "true": True, "false": False}[text.lower()]
    if _INTEGER.fullmatch(text) and text.isascii():
        return int(text)
    if _FLOAT.fullmatch(text) and _is_plain_number(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _is_plain_number(text: str) -> bool:
    """Not 007 and not 00.5: a number that begins with a needless zero is a name."""
    digits = text.lstrip("+-")
    return text.isascii() and not (digits[:1] == "0" and digits[1:2].isdigit())


def is_text(hint: Any) -> bool:
    """Whether a field of this type holds text, or one of a set of names."""
    return hint in (str, Source) or (isinstance(hint, type) and issubclass(hint, Enum))


def plain(node: Node, hint: Any) -> Any:
    """The value of `node` for a field of type `hint`, whose types are judged later."""
    if node is None:
        return None
    inner = required(hint)
    if isinstance(node, list):
        item = typing.get_args(inner)[0] if typing.get_origin(inner) is list else inner
        return [plain(each, item) for each in node]
    if isinstance(node, dict):
        return {key: plain(each, of_key(inner, key)) for key, each in node.items()}
    if is_text(inner):
        is_null = not node.is_text and node.text == "null" and hint is not str
        return None if is_null else node.text
    return node.value


def of_key(hint: Any, key: str) -> Any:
    """The type of the value of `key` in a mapping of type `hint`."""
    if hint is Source:
        return {"columns": dict[str, str]}.get(key, Any if key in _SHARES else str | None)
    return typing.get_args(hint)[1] if typing.get_origin(hint) is dict else Any


def required(hint: Any) -> Any:
    """The type of an optional field where it is not null."""
    if typing.get_origin(hint) not in (types.UnionType, typing.Union):
        return hint
    return next(arg for arg in typing.get_args(hint) if arg is not types.NoneType)


def unquoted(text: str) -> str | None:
    """The text between the quotes of a word that is wholly in quotes; None for any other."""
    quote = text[:1]
    try:
        if not quote or quote not in _QUOTES or _end_of_quotes(text, 0) != len(text):
            return None
    except ValueError:
        return None
    return re.sub(rf"(\\+)({quote}|\Z)", _halved, text[1:-1])


def _halved(match: re.Match[str]) -> str:
    """Backslashes before a quote count half."""
    return "\\" * (len(match[1]) // 2) + match[2]


def function(text: str) -> tuple[str, str] | None:
    """Name and arguments of a value that is one call of a function of Hydra's."""
    found = _CALL.fullmatch(text.strip())
    if not found:
        return None
    try:
        parts(found[2])
    except ValueError:  # choice(a) and choice(b), or brackets in text
        return None
    return found[1], found[2]


def parts(text: str, pairs: bool = False) -> list[str]:
    """The parts between commas outside quotes and brackets, without blanks around them.

    `pairs` says that they are `key: value`. Raises `ValueError` where that cannot be told: a
    bracket or a quote is not closed.
    """
    found, start = [], 0
    for at in _separators(text, ",", pairs):
        found.append(text[start:at].strip())
        start = at + 1
    return [*found, text[start:].strip()]


def _separators(text: str, separator: str, pairs: bool) -> Iterator[int]:
    """Places of the separators. A quote counts where a value begins, within a word it is text."""
    closing: list[str] = []
    at, begins = 0, True
    while at < len(text):
        letter = text[at]
        if begins and letter in _QUOTES:
            at = _end_of_quotes(text, at)
            begins = False
            continue
        if letter in _OPEN:
            closing.append(_OPEN[letter])
        elif letter in _OPEN.values():
            if not closing or closing.pop() != letter:
                raise ValueError(f"{letter!r} closes nothing")
        elif letter == separator and not closing:
            if text[at - 1 : at] == "\\":
                raise ValueError(f"a backslash before {separator!r} does not keep it")
            yield at
        is_key = letter == ":" and (closing[-1] == "}" if closing else pairs)
        begins = is_key or letter in ",[{(" or (begins and letter.isspace())
        at += 1
    if closing:
        raise ValueError(f"{closing[-1]!r} is missing")


def _end_of_quotes(text: str, start: int) -> int:
    """The place behind the quote that closes the one at `start`. Raises `ValueError`."""
    quote = text[start]
    # Pairs of backslashes stand for one; an odd one keeps the quote behind it.
    found = re.compile(rf"(?:[^{quote}\\]|\\.)*{quote}", re.DOTALL).match(text, start + 1)
    if found is None:
        raise ValueError(f"the quote {quote} is not closed")
    return found.end()


def parse(text: str) -> Node:
    """A value of the command line. Raises `ValueError` for brackets and quotes not closed."""
    text = text.strip()
    if text[:1] == "[":
        return [parse(part) for part in _inside(text, "]")]
    if text[:1] == "{":
        pairs = [_pair(part) for part in _inside(text, "}", pairs=True)]
        return dict(pairs)
    inner = unquoted(text) if text[:1] in _QUOTES and text else None
    if inner is not None:
        return Word(inner, is_text=True)
    if text[:1] in _QUOTES and text:
        raise ValueError("there is more behind the closing quote")
    return Word(text)


def _inside(text: str, closing: str, pairs: bool = False) -> list[str]:
    if text[-1] != closing or len(text) < 2:
        raise ValueError(f"{closing!r} is missing at the end")
    inner = text[1:-1]
    if not inner.strip():
        return []
    found = parts(inner, pairs)
    if "" in found:
        raise ValueError("there is nothing between two commas")
    return found


def _pair(text: str) -> tuple[str, Node]:
    at = next(_separators(text, ":", pairs=True), None)
    if at is None:
        raise ValueError(f"{text!r} is not of the form key: value")
    key = text[:at].strip()
    inner = unquoted(key) if key[:1] in _QUOTES and key else None
    return key if inner is None else inner, parse(text[at + 1 :])
