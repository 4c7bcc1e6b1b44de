"""Damage and emptiness in texts: pure functions from a text to what was found in it, and where.

They are made to be right when they speak: what is usual in clean data of some kind (emoji, tables,
code, formulas, other scripts) is no finding.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from html.entities import html5
from typing import Any

from launcher.core import registry


@dataclass(frozen=True, slots=True)
class Flaw:
    """What was found, and the characters [begin, end) that show it."""

    why: str
    begin: int
    end: int


#: Words around which a text is long enough to repeat itself, and the share that is too much.
MIN_WORDS, NGRAM, MAX_REPEATED = 40, 8, 0.3
#: The same for texts without spaces, in characters.
CHARACTER_NGRAM = 20
MAX_SAME_LINES, MAX_RUN = 5, 80
#: Characters of a text that are looked at for repetition: its n-grams need 100 times their memory.
REPEATING = 200_000
_SAMPLED_RUN = re.compile(r"(.)\1{4}", re.DOTALL)

_BROKEN = re.compile(
    r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ufffd\ufffe\uffff\ue000-\uf8ff]"
    r"|[\u202a-\u202e\u2066-\u2069]|[\ud800-\udfff]"
    # A byte order mark inside, and what is invisible between letters that do not join.
    r"|(?<=[^\n])\ufeff|(?<=[A-Za-z0-9 ])[\u200b-\u200d\u2060-\u2064]+(?=[A-Za-z0-9 ])"
    # Tags outside of the flags that they are for: text that only machines read.
    r"|(?<![\U0001f3f4\U000e0000-\U000e007f])[\U000e0000-\U000e007f]+"
)
#: All that _BROKEN may find: one class of characters is searched for many times faster.
_SUSPECT = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u200b-\u200d\u202a-\u202e\u2060-\u2069"
    "\ud800-\uf8ff\ufeff\ufffd-\uffff\U000e0000-\U000e007f]"
)
_NAMES = {
    "\ufffd": "the replacement character (text was lost)",
    "\x00": "a NUL byte",
    "\ufeff": "a byte order mark inside",
}
_CODE = re.compile(r"```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)|``.+?``|`[^`\n]+`", re.DOTALL)
_FENCE = re.compile(
    r"^[ \t>]{0,40}(?:(?:[-*+]|\d{1,9}[.)])[ \t]{0,40})?(`{3,}|~{3,})(.*)$", re.MULTILINE
)
_ENTITY = re.compile(
    r"&amp;(?:#\d+|#x[\da-f]+|[a-z]+\d*);|&(#\d{2,6}|#x[\da-f]{2,5}|[a-z]+\d*);", re.I
)
_TAG = re.compile(
    r"</?(?:p|div|span|br|hr|a|b|i|u|em|strong|font|table|tbody|thead|tr|td|th|ul|ol|li|h[1-6]|img"
    r"|script|style|iframe|html|body|head|meta|link|section|article|nav|center|blockquote)"
    r"(?:\s+[a-z-]+=(?:\"[^\"<>]*\"|'[^'<>]*'|[^\s\"'<>]+))*\s*/?>",
    re.I,
)
_MARKUP_TOPIC = re.compile(
    r"html|xml|\bcss\b|\bsvg\b|\bjsx\b|\btags?\b|javascript|\bphp\b|web ?page|web ?site|markdown"
    r"|<!doctype|entit(?:y|ies)|<\?",
    re.I,
)
_RULER = re.compile(r"[\s\-=_*.#~+|:─━═│┃█░▒▓]+\Z")

_MODEL = r"(?:AI|artificial intelligence|(?:large )?language model|chatbot|virtual assistant)"
_SORRY = (
    r"(?:I['’]?m|I am|we are) (?:very |so |really |truly )?sorry|(?:my )?apolog(?:ies|i[sz]e)|sorry"
    r"|unfortunately"
)
_CANNOT = (
    r"(?:can['’]?t|cannot|can not|won['’]?t|will not|(?:am|['’]m) (?:not able|unable)"
    r"|do(?: not|n['’]t) (?:feel comfortable|have the ability))"
)
#: What people say who do not refuse: "I can't wait".
_IDIOM = r"(?: wait| stop| imagine| believe| remember| help (?:but|it)| make it| come)"
_DEED = (
    r"(?:(?:help|assist) (?:you )?with (?:that|this|your|requests)|(?:fulfil|fulfill|comply with"
    r"|complete|provide|generate|create|answer|process|engage in|discuss) (?:that|this|your|any"
    r"|content|information (?:on|about|that)|instructions))"
)
#: At the beginning of an answer.
_REFUSAL = re.compile(
    rf"\W*(?:(?:{_SORRY})[^.!?\n]{{0,60}}?\bI ?{_CANNOT}\b(?!{_IDIOM})|I ?{_CANNOT}(?: to)? {_DEED}"
    r"|很抱歉,?我(?:无法|不能)|申し訳ありませんが、)",
    re.I,
)
#: Anywhere in it.
_CHATBOT = re.compile(
    rf"\bas an? {_MODEL}\b|\bI(?:['’]m| am) (?:just |only )?an? {_MODEL}\b"
    r"|\bI (?:don['’]t|do not) have (?:personal (?:opinions|experiences|feelings|beliefs)"
    r"|access to real[- ]time|the ability to browse)"
    r"|\bmy (?:knowledge cut-?off|training data (?:only )?(?:goes|extends))"
    r"|\bas of my last (?:knowledge )?(?:update|training)"
    r"|\b(?:trained|developed|created) by (?:OpenAI|Anthropic)\b"
    r"|\bals (?:eine? )?(?:KI|künstliche Intelligenz|KI-Sprachmodell|Sprachmodell)\b"
    r"(?=[^.\n]{0,40}\b(?:kann|habe|bin)\b)"
    r"|\ben tant qu['’](?:IA|intelligence artificielle|assistant IA)"
    r"|\ben tant que modèle de langage"
    r"|\bcomo (?:una? )?(?:modelo de lenguaje|IA|inteligencia artificial)\b"
    r"|作为(?:一个|一名)?(?:AI|人工智能|语言模型)|(?:AI|人工知能)として",
    re.I,
)
_CHATBOT_WORDS = (
    *(
        "language model",
        "as an",
        "an ai",
        "chatbot",
        "assistant",
        "artificial",
        "i don",
        "i do not",
    ),
    *("my knowledge", "my training", "as of my", "openai", "anthropic", "als ", "en tant", "como "),
    *("作为", "として"),
)
_FILLER = re.compile(
    r"\blorem ipsum dolor\b|\[(?:insert|your|enter) [a-z' ]{2,40}\]|\bTODO: (?:write|fill|answer)\b"
    r"|\bregenerate response\b|\b\d{1,9} / \d{1,9}\s{0,9}Share\b",
    re.I,
)
_FILLER_WORDS = ("lorem ipsum", "[", "todo:", "regenerate response", "share")
_NO_ANSWER = re.compile(r"\W*(?:n/?a|none|null|nil|nan|undefined|todo|tbd|\?|\.\.\.)?\W*\Z", re.I)


def optional(module: str) -> Any:
    """A library of the extra `data`; `ConfigError` if it is not installed."""
    return registry.need(module, "the report needs", where="data.report", extra="data")


@cache
def _badness() -> re.Pattern[str]:
    pattern: re.Pattern[str] = optional("ftfy.badness").BADNESS_RE
    return pattern


def mojibake(text: str) -> Flaw | None:
    """Text in one encoding that was read as another: `cafÃ©`."""
    if text.isascii():
        return None
    found = _badness().search(text)
    return found and Flaw("UTF-8 that was read as another encoding", *found.span())


def control(text: str) -> Flaw | None:
    """Control, replacement and private characters, and those that hide or turn text around."""
    found = _SUSPECT.search(text) and _BROKEN.search(text)
    if not found:
        return None
    name = _NAMES.get(found[0], f"the character U+{ord(found[0][0]):04X}")
    return Flaw(f"{name}, which nobody sees or means", *found.span())


def markup(text: str, about: str = "") -> Flaw | None:
    """Rests of HTML outside of code, in texts (and prompts: `about`) that are not about it."""
    if "<" not in text and "&" not in text:
        return None
    plain = _CODE.sub(lambda code: " " * len(code[0]), text)
    for found in _ENTITY.finditer(plain):
        name = found[1]
        if name is None or name[0] == "#" or f"{name};" in html5:
            if _MARKUP_TOPIC.search(about) or _MARKUP_TOPIC.search(plain):
                return None
            return Flaw("an HTML entity that was not decoded", *found.span())
    tag = _TAG.search(plain)
    if not tag or _MARKUP_TOPIC.search(about) or _MARKUP_TOPIC.search(plain):
        return None
    return Flaw("an HTML tag outside of code", *tag.span())


def fences(text: str) -> Flaw | None:
    """A block of code that is opened and not closed."""
    if "```" not in text and "~~~" not in text:
        return None
    opened: re.Match[str] | None = None
    for line in _FENCE.finditer(text):
        if opened is None:
            # ```code``` on one line is no block.
            opened = None if line[1][0] in line[2] else line
        elif line[1].startswith(opened[1]) and not line[2].strip():
            opened = None
    return opened and Flaw("a block of code that is not closed", *opened.span())


def repetition(text: str) -> Flaw | None:
    """A text that says the same again and again, as models do that have lost their way."""
    if len(text) < MAX_RUN:
        return None
    text = text[:REPEATING]
    words = text.split()
    if len(words) < MIN_WORDS:
        sparse = len(text) > 8 * max(1, len(words))
        return (sparse and _again(text, CHARACTER_NGRAM)) or _run(text)
    total = len(words) - NGRAM + 1
    again = total - len(set(_ngrams(words)))
    if again > MAX_REPEATED * total:
        gram, count = Counter(_ngrams(words)).most_common(1)[0]
        begin = text.find(gram[0])
        found = f"{again / total:.0%} of its {NGRAM}-word sequences repeat, one {count} times"
        return Flaw(found, begin, begin + len(" ".join(gram)))
    return _same_lines(text) or _run(text)


def _ngrams(words: list[str]) -> Iterator[tuple[str, ...]]:
    return zip(*(words[i:] for i in range(NGRAM)), strict=False)


def _again(text: str, size: int) -> Flaw | None:
    total = len(text) - size + 1
    grams = len({text[i : i + size] for i in range(total)})
    if total - grams <= MAX_REPEATED * total or _RULER.match(text):
        return None
    return Flaw(f"{1 - grams / total:.0%} of its {size}-character sequences repeat", 0, size)


def _same_lines(text: str) -> Flaw | None:
    before, count, at = "", 0, 0
    for line in text.split("\n"):
        said = line.strip()
        count = count + 1 if said == before and len(said) > 8 and not _RULER.match(said) else 0
        if count >= MAX_SAME_LINES:
            return Flaw(f"the same line {count + 1} times in a row", at, at + len(line))
        before, at = said, at + len(line) + 1
    return None


@cache
def _runs() -> re.Pattern[str]:
    # A character or a short group of them, over and over.
    return re.compile(rf"([^\s\-=_*.#~+|:─━═│┃█░▒▓])\1{{{MAX_RUN - 1},}}")


def _run(text: str) -> Flaw | None:
    # A run that long holds five equal characters of every sixteenth: most texts end here.
    if not _SAMPLED_RUN.search(text[::16]):
        return None
    found = _runs().search(text)
    return found and Flaw(f"{found[1]!r} {len(found[0])} times in a row", *found.span())


def refusal(answer: str) -> Flaw | None:
    """An answer that refuses, or speaks as the product that it was copied from."""
    if found := _REFUSAL.match(answer):
        return Flaw("a refusal", *found.span())
    lower = answer.lower()
    if any(word in lower for word in _CHATBOT_WORDS) and (found := _CHATBOT.search(answer)):
        return Flaw("a chatbot's phrase about itself", *found.span())
    if not any(word in lower for word in _FILLER_WORDS):
        return None
    found = _FILLER.search(answer)
    return found and Flaw("a placeholder or a rest of a web page", *found.span())


def says_nothing(answer: str) -> bool:
    """Whether an answer is empty, or a word that stands for nothing."""
    return len(answer) < 16 and bool(_NO_ANSWER.match(answer))


def excerpt(text: str, size: int = 200) -> str:
    """The beginning of a text, on one line."""
    shown = " ".join(text[:size].split()).encode("utf-8", "backslashreplace").decode()
    return shown + "…" * (size < len(text))


def plural(number: int, one: str, many: str = "") -> str:
    """`1 record`, `1,234 records`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
