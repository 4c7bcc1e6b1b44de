"""Personal data and secrets in texts."""

from __future__ import annotations

import ipaddress
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from launcher.curate.records.texts import optional

PERSONAL, SECRET = "pii", "secrets"


@dataclass(frozen=True, slots=True)
class PrivateSpan:
    """One piece of personal data or one secret: characters [begin, end) of a text."""

    rule: str
    kind: str
    begin: int
    end: int


# Records are other people's texts: no pattern here may take more than linear time on any of them.
_EMAIL = re.compile(
    r"(?<![\w.+%-])[A-Za-z0-9](?:[\w.+%-]{0,62}[A-Za-z0-9_])?"
    r"@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,18}(?![\w@-])"
)
_CARD = re.compile(r"(?<![\w.,$€£+/=-])\d(?:[ -]?\d){12,18}(?![\w/=%]|[.,-]\d)")
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)")
_IP = re.compile(r"(?<![\w.-])(?:\d{1,3}\.){3}\d{1,3}(?![\w-]|\.\d)")
_VERSION = re.compile(
    r"(?:version|release|ver\.?|build|firmware|v|section|chapter|==|>=)\s*\Z", re.I
)
_SSN = re.compile(r"(?<![\w-])(?!000|666|9)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\w-])")
_ABROAD = re.compile(
    r"(?<![\w+.=*/^-])\+(?!\d{16})[1-9]\d{0,2}[ .()/-]?(?:\(?\d{1,5}\)?[ .()/-]{0,2}){2,5}\d(?!\d)"
)
_AMERICAN = re.compile(
    r"(?<![\w.$(/=*+-])(?:1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[.-])"
    r"\d{3}[.-]\d{4}(?![\w-]|\.\d)"
)
_CALLED = re.compile(
    r"\b(?:phone|mobile|cell|tel(?:efon|ephone|\.)?|call(?: me| us)?(?: at| on)?|whatsapp|fax|handy"
    r"|mobil|móvil|teléfono)(?: (?:number|no\.?|nr\.?|is|:)){0,3}\s{0,3}[:.]?\s{0,3}"
    r"(\(?0?\d[\d ().-]{6,16}\d)(?![\d/])",
    re.I,
)
_DIGITS = re.compile(r"\d[\d .()/-]{5,}\d")
#: Servers that everyone names.
_PUBLIC = {"8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9"}

_KEYS = re.compile(
    r"-----BEGIN (?:[A-Z]{1,16} ){0,4}PRIVATE KEY(?: BLOCK)?-----"
    # Hyphens may stand in its headers, five of them begin the next key.
    r"(?:[^-]{0,65536}(?:-(?!----)[^-]{0,65536}){0,64}"
    r"-----END (?:[A-Z]{1,16} ){0,4}PRIVATE KEY(?: BLOCK)?-----"
    # Without an end, the lines that can be nothing else.
    r"|(?:\s{1,4}[A-Za-z0-9+/=]{32,128}){0,1024})"
    r"|(?<![A-Za-z0-9])(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}|gh[pousr]_[A-Za-z0-9]{36,255}|github_pat_\w{22,255}"
    r"|glpat-[\w-]{20,}|sk-(?:proj-|svcacct-|ant-(?:api|admin)\d\d-|or-v1-)?[A-Za-z0-9_-]{20,}|hf_[A-Za-z0-9]{30,}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10,}|AIza[\w-]{35}|ya29\.[\w-]{20,}|[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"
    r"|npm_[A-Za-z0-9]{36}|pypi-AgE[\w-]{40,}|SG\.[\w-]{22}\.[\w-]{43}|dop_v1_[a-f0-9]{64}"
    r"|AC[a-f0-9]{32}(?=.{0,60}twilio)|(?<![\w-])eyJ[\w-]{10,16384}\.eyJ[\w-]{10,16384}"
    r"\.[\w-]{10,}"
    r")(?![A-Za-z0-9])"
    r"|https://hooks\.slack\.com/services/T\w+/B\w+/\w+"
)
_URL_PASSWORD = re.compile(
    r"\b[a-z][a-z0-9+]{2,12}://[^\s:/@\"'<>]{1,256}:([^\s:/@\"'<>]{3,256})@[\w.-]", re.I
)
_ASSIGNED = re.compile(
    r"(?:api[_-]?key|secret(?:[_-]?(?:access)?[_-]?key)?|access[_-]?token|auth[_-]?token|password"
    r"|passwd|client[_-]?secret)[\"']?\s{0,8}(?::=|[:=]|=>)\s{0,8}[\"']?([A-Za-z0-9+/_.=-]{16,128})(?![\w(])",
    re.I,
)
_PLACEHOLDER = re.compile(
    r"x{4,}|\*{3,}|your|<|\.\.\.|change|placeholder|dummy|environ|getenv|secret|password", re.I
)
_KEY_HINTS = (
    *("-----BEGIN", "AKIA", "ASIA", "ABIA", "ACCA", "gh", "glpat", "sk-", "hf_", "xox", "AIza"),
    *("ya29", "k_live", "k_test", "npm_", "pypi-", "SG.", "dop_v1", "twilio", "eyJ", "hooks.slack"),
)
_ASSIGNED_HINTS = ("key", "secret", "token", "passw")
#: Line ends and tabs as JSON and code write them: their letters belong to no word after them.
_ESCAPED = re.compile(r"\\[nrt]")


def private_spans(text: str) -> list[PrivateSpan]:
    """Everything personal or secret in a text, in order, without overlaps."""
    if "\\" in text:
        text = _ESCAPED.sub("  ", text)
    found = [*_secrets(text), *_personal(text)]
    found.sort(key=lambda span: (span.begin, span.rule != SECRET, -span.end))
    kept: list[PrivateSpan] = []
    for span in found:
        if not kept or span.begin >= kept[-1].end:
            kept.append(span)
    return kept


def _personal(text: str) -> Iterator[PrivateSpan]:
    if "@" in text:
        for found in _EMAIL.finditer(text):
            if ".." not in found[0] and not found[0].startswith("git@"):
                yield PrivateSpan(PERSONAL, "e-mail address", *found.span())
    runs = [found[0] for found in _DIGITS.finditer(text)]
    most = max((sum(c.isdigit() for c in run) for run in runs), default=0)
    dotted = any(run.count(".") >= 3 for run in runs)
    for kind, needed, pattern, is_one in _NUMBERS:
        if most >= needed or (dotted and pattern is _IP):
            for found in pattern.finditer(text):
                if is_one(found):
                    yield PrivateSpan(PERSONAL, kind, *found.span(found.re.groups))


def _secrets(text: str) -> Iterator[PrivateSpan]:
    if any(hint in text for hint in _KEY_HINTS):
        for found in _KEYS.finditer(text):
            if "PRIVATE KEY" in found[0] or _is_random(found[0], 2.5):
                kind = "private key" if "PRIVATE KEY" in found[0] else "key"
                yield PrivateSpan(SECRET, kind, *found.span())
    if "://" in text and "@" in text:
        for found in _URL_PASSWORD.finditer(text):
            if not _PLACEHOLDER.search(found[1]) and found[1].lower() not in ("pass", "pwd", "pw"):
                yield PrivateSpan(SECRET, "password", *found.span(1))
    lower = text.lower()
    if any(hint in lower for hint in _ASSIGNED_HINTS):
        for found in _ASSIGNED.finditer(text):
            if _is_random(found[1], 3.3) and not _PLACEHOLDER.search(found[1]):
                yield PrivateSpan(SECRET, "key", *found.span(1))


def _is_random(key: str, bits: float) -> bool:
    """Whether letters and digits are mixed as chance does it: words and patterns are no keys."""
    counts = Counter(key)
    entropy = -sum(n / len(key) * math.log2(n / len(key)) for n in counts.values())
    longest = max(len(list(run)) for _, run in groupby(key))
    mixed = any(c.isdigit() for c in key) and any(c.isalpha() for c in key)
    return mixed and entropy >= bits and longest < 6


def _is_card(found: re.Match[str]) -> bool:
    digits = [int(c) for c in found[0] if c.isdigit()]
    number = "".join(map(str, digits))
    known = (
        (len(number) in (13, 16, 19) and number[0] == "4")
        or (len(number) == 16 and ("51" <= number[:2] <= "55" or "2221" <= number[:4] <= "2720"))
        or (len(number) == 15 and number[:2] in ("34", "37"))
        or (len(number) in (16, 19) and number.startswith(("6011", "65", "62", "35")))
        or (len(number) == 14 and number[:2] in ("30", "36", "38", "39"))
    )
    separators = [c for c in found[0] if not c.isdigit()]
    if not known or len(set(separators)) > 1 or len(set(number)) < 2:
        return False
    doubled = [sum(divmod(2 * d, 10)) if i % 2 else d for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def _is_iban(found: re.Match[str]) -> bool:
    plain = found[0].replace(" ", "")
    if not 15 <= len(plain) <= 34:
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _is_address(found: re.Match[str]) -> bool:
    if found[0] in _PUBLIC or _VERSION.search(
        found.string, max(0, found.start() - 12), found.start()
    ):
        return False
    try:
        address = ipaddress.IPv4Address(found[0])
    except ValueError:
        return False
    parts = found[0].split(".")
    return address.is_global and parts[0] != "0" and any(len(part) > 1 for part in parts)


def _is_abroad(found: re.Match[str]) -> bool:
    phonenumbers: Any = optional("phonenumbers")
    try:
        return bool(phonenumbers.is_possible_number(phonenumbers.parse(found[0], None)))
    except phonenumbers.NumberParseException:
        return False


def _is_called(found: re.Match[str]) -> bool:
    return 7 <= sum(c.isdigit() for c in found[1]) <= 15


def _always(_: re.Match[str]) -> bool:
    return True


def _is_american(found: re.Match[str]) -> bool:
    digits = [c for c in found[0] if c.isdigit()]
    return len(digits) == 10 + (digits[0] == "1")


#: Kind, digits that one run of them must have for it (most texts have none so long), pattern, test.
_NUMBERS: tuple[tuple[str, float, re.Pattern[str], Callable[[re.Match[str]], bool]], ...] = (
    ("card number", 13, _CARD, _is_card),
    ("IBAN", 7, _IBAN, _is_iban),
    ("IP address", math.inf, _IP, _is_address),
    ("social security number", 9, _SSN, _always),
    ("phone number", 7, _ABROAD, _is_abroad),
    ("phone number", 10, _AMERICAN, _is_american),
    ("phone number", 7, _CALLED, _is_called),
)
