"""Control tokens that people spell in their texts, which must stay text.

A user who writes `<|im_end|>` ends no turn. Before a template sees a conversation, every spelling
of a control token in it is broken by a mark, which goes wherever the text goes; of what the
template writes, whole spellings are its own. A second tokenizer, which has other names for the same
control tokens, reads these by their other names, and all else as text. So it does with what only
the tokenizer's normalizer would make a control token of, such as capitals or wide letters.
Conversations without such spellings never come here.
"""

from __future__ import annotations

import functools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

from launcher.data.chat.provenance import TAGS, split_thoughts
from launcher.data.chat.template import SAMPLE, ChatTemplate, Message, is_plain
from launcher.data.formats.base import BadRecord

Value = TypeVar("Value")

#: Characters that no text holds, by Unicode; a record that has one is given another.
_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
#: Control tokens by their number, in a plane that no text uses.
_FIRST, _MOST = 0xF0000, 0xFFFD
#: More searches than these take longer than one for all names.
_HEADS = 24
_NAMED = re.compile("[\U000f0000-\U000ffffd]")
_HINT = "remove it; to read control tokens in texts as such: data.special_tokens=parse"


class Literals:
    """Spellings of one tokenizer's control tokens, in texts and as tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._control = _control_tokens(tokenizer)
        names = sorted(self._control, key=lambda name: (-len(name), name))
        self._find = re.compile(_any_of(names))
        self._normal = _Normal.of(self._backend, self._control)
        begun = [tag for pair in TAGS.items() for tag in pair]
        plain = [name for name in names if not any(tag.startswith(name) for tag in begun)]
        self._find_in_thoughts = re.compile(_any_of(plain))
        self._heads = _heads(names)

    def are_in(self, text: str) -> bool:
        """Whether a text spells a control token."""
        # Most texts hold none, and this is asked of all.
        for head in self._heads:
            if head in text:
                if self._find.search(text):
                    return True
                break
        return self._normal is not None and self._normal.spells(text)

    def spelled(self, tokens: Sequence[int]) -> dict[str, int]:
        """The control tokens that tokens spell as text, and how often."""
        ids = set(self._control.values())
        found: Counter[str] = Counter()
        for is_control, run in groupby(tokens, ids.__contains__):
            if not is_control:
                text = self._backend.decode(list(run), skip_special_tokens=False)
                found.update(self._named_in(text))
        return dict(found)

    def _named_in(self, text: str) -> Counter[str]:
        """The control tokens that a text spells."""
        found: Counter[str] = Counter(self._find.findall(text))
        return found | Counter(self._normal.names(text) if self._normal else ())

    def are_said_in(self, messages: Sequence[Message], tools: Any) -> bool:
        """Whether a conversation spells a control token."""
        # Of most messages a look at their text is enough, and of all of them it is taken.
        texts: list[str] = []
        for message in messages:
            if is_plain(message):
                texts += message.values()
            elif self.are_said(message):
                return True
        return self.are_in("\n".join(texts)) or (bool(tools) and self.are_said(tools))

    def are_said(self, *values: Any) -> bool:
        """Whether any data spell a control token in a text or a key."""
        for value in values:
            if isinstance(value, str):
                if self.are_in(value):
                    return True
            elif isinstance(value, Mapping):
                if self.are_said(*value.keys(), *value.values()):
                    return True
            elif isinstance(value, list | tuple) and self.are_said(*value):
                return True
        return False

    def mark_for(self, *values: Any) -> str:
        """A character that is in none of the values. `BadRecord` if all that there are are used."""
        text = json.dumps(values, ensure_ascii=False, default=str)
        # Neither as such, nor as JSON in a text may write it.
        low = text.lower()
        free = next(
            (mark for mark in _MARKS if mark not in text and f"u{ord(mark):04x}" not in low), None
        )
        if free is None:
            raise _private()
        self.require_told(text)
        return free

    def require_told(self, text: str) -> None:
        """`BadRecord` for a text in which spellings cannot be told from control tokens."""
        if _NAMED.search(text):
            raise _private()
        for name in self._untold:
            if name in text or name in self._named_in(text):
                raise BadRecord(
                    f"this tokenizer cannot tell the control token {name!r} from its spelling",
                    hint=_HINT,
                )

    def broken(self, value: Value, mark: str) -> Value:
        """Data with all spellings broken by `mark`."""
        made: Value = _replaced(value, lambda text: _broken(text, self._find, mark))
        return made

    def broken_message(self, message: Message, mark: str) -> Message:
        """The same of a message; thoughts of the assistant keep their tags."""
        made = self.broken(message, mark)
        content = message.get("content")
        if message["role"] == "assistant" and isinstance(content, str):
            thought, rest = split_thoughts(content)
            kept = _broken(thought, self._find_in_thoughts, mark)
            made["content"] = kept + _broken(rest, self._find, mark)
        return made

    def settled(self, text: str, mark: str) -> tuple[str, str, Callable[[int], int]]:
        """A rendered text without marks; the same with other names for the control tokens that are
        whole in it; and where a place in the text with marks is in these."""
        # Some templates write JSON, or as Python does, with characters escaped.
        marks = re.compile(f"{mark}|\\\\u{ord(mark):04x}", re.IGNORECASE)
        named = self._written.sub(self._name, text)
        gone = [match.span() for match in marks.finditer(text)]
        pieces = re.split(marks, named)

        def place(at: int) -> int:
            return at - sum(min(end, at) - begin for begin, end in gone if begin < at)

        return marks.sub("", text), "".join(pieces), place

    def encode(self, named: Sequence[str]) -> tuple[list[Any], list[list[int]]]:
        """Encodings of texts with the other names, and their ids. Offsets are those of the texts
        themselves: a name is as long as what it stands for."""
        backend, ids, _ = self._second
        encodings = backend.encode_batch(list(named), add_special_tokens=False)
        return encodings, [[ids.get(i, i) for i in encoding.ids] for encoding in encodings]

    def _name(self, match: re.Match[str]) -> str:
        if match[0] in self._untold:
            self.require_told(match[0])
        return self._names[match[0]]

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        """Other names of control tokens, as long as their own: as many as can be told apart."""
        numbered = zip(range(_MOST), self._control, strict=False)
        return {name: chr(_FIRST + number) * len(name) for number, name in numbered}

    @property
    def _untold(self) -> frozenset[str]:
        """Control tokens that the second tokenizer has under no other name."""
        return self._second[2]

    @functools.cached_property
    def _written(self) -> re.Pattern[str]:
        """Finds control tokens that a template has written where the tokenizer takes them."""
        tokens = self._backend.get_added_tokens_decoder()
        alone = {name for name, i in self._control.items() if i in tokens and tokens[i].single_word}
        if alone:
            alone -= _made_by_model(json.loads(self._backend.to_str())["model"], alone)
        if not alone:
            return self._find
        others = _any_of(self._control.keys() - alone)
        return re.compile(rf"(?:{others})|(?<!\w)(?:{_any_of(alone)})(?!\w)")

    @functools.cached_property
    def _second(self) -> tuple[Any, dict[int, int], frozenset[str]]:
        """The tokenizer in which control tokens have other names, its ids where they differ, and
        the control tokens that have no other name in it."""
        parts = json.loads(self._backend.to_str())
        names = self._names
        known = {token["content"] for token in parts["added_tokens"]}
        for token in parts["added_tokens"]:
            if token["content"] in names:
                # No normalizer sees the other name, and none can remove it.
                token["content"], token["normalized"] = names[token["content"]], False
        _rename(parts["model"], names)
        second = type(self._backend).from_str(json.dumps(parts))
        second.no_truncation()
        second.no_padding()
        tokens = self._backend.get_added_tokens_decoder()
        for own in names.keys() - known:  # as templates spell them
            second.add_tokens([_renamed(tokens[self._control[own]], names[own])])
        found = {second.token_to_id(name): self._control[own] for own, name in names.items()}
        told = {
            own
            for own, name in names.items()
            if [found.get(i, i) for i in second.encode(name, add_special_tokens=False).ids]
            == [self._control[own]]
        }
        return second, found, frozenset(self._control.keys() - told)


class _Normal:
    """Spellings of which the tokenizer's normalizer, or its model, makes control tokens."""

    def __init__(self, normalizer: Any, steps: Sequence[Any], names: Mapping[str, str]) -> None:
        """`names`: spelling in a normal text -> control token; `steps` of the normalizer as JSON
        has them."""
        self._normal = _normalizer(normalizer)
        self._names = names
        self._find = re.compile(_any_of(names))
        self._are_others = any(spelling != name for spelling, name in names.items())
        letters = set().union(*names)
        self._keep = [_kept_by(step, self._normal, letters) for step in steps]

    @classmethod
    def of(cls, backend: Any, control: Mapping[str, int]) -> _Normal | None:
        """None if a text spells control tokens by their names alone."""
        parts = json.loads(backend.to_str())
        normal = _normalizer(backend.normalizer)
        tokens = backend.get_added_tokens_decoder()
        made = _made_by_model(parts["model"], control)
        names: dict[str, str] = {}
        for name, i in control.items():
            if i in tokens and tokens[i].normalized:
                names.setdefault(normal(name), name)
            if name in made:
                # The model sees other letters than the text has.
                shown = backend.decoder.decode([name]) if backend.decoder else name
                names |= dict.fromkeys((name, shown), name)
        names.pop("", None)
        step = parts["normalizer"]
        if not step and all(spelling == name for spelling, name in names.items()):
            return None
        steps = step["normalizers"] if step and step["type"] == "Sequence" else [step]
        return cls(backend.normalizer, [step for step in steps if step], names) if names else None

    def spells(self, text: str) -> bool:
        """Whether a text spells a control token, but for those that it has by their names."""
        if not all(keeps(text) for keeps in self._keep):
            return self._find.search(self._normal(text)) is not None
        return self._are_others and self._find.search(text) is not None

    def names(self, text: str) -> list[str]:
        """The control tokens that a text spells."""
        return [self._names[spelling] for spelling in self._find.findall(self._normal(text))]


def _normalizer(normalizer: Any) -> Callable[[str], str]:
    return normalizer.normalize_str if normalizer else str


def _kept_by(
    step: dict[str, Any], normal: Callable[[str], str], letters: set[str]
) -> Callable[[str], bool]:
    """Whether a step of a normalizer surely makes no spelling of a text that has none."""
    kind = step["type"]
    if kind in ("NFC", "NFD", "NFKC", "NFKD"):
        return lambda text: text.isascii() or unicodedata.is_normalized(kind, text)
    put = normal(step.get("content" if kind == "Replace" else "prepend") or "")
    # What no name has stands between those that have been apart.
    apart = not letters.issuperset(put)
    return lambda text: apart


def _made_by_model(model: dict[str, Any], names: Iterable[str]) -> set[str]:
    """Names that a model may make of letters, and not only the look-up of added tokens."""
    if model["type"] == "BPE" and not model.get("ignore_merges"):
        prefix = model.get("continuing_subword_prefix") or ""
        return {_merged(pair, prefix)[2] for pair in model["merges"]}.intersection(names)
    vocabulary = model.get("vocab") or ()
    if isinstance(vocabulary, list):  # Unigram: [piece, score], by id
        vocabulary = {piece for piece, _ in vocabulary}
    return {name for name in names if name in vocabulary}


def _private() -> BadRecord:
    return BadRecord(
        "the spelling of a control token beside characters that Unicode keeps for private use",
        hint=_HINT,
    )


def _renamed(token: Any, name: str) -> Any:
    """An added token under another name."""
    flags = {flag: getattr(token, flag) for flag in ("single_word", "lstrip", "rstrip")}
    return type(token)(name, normalized=False, **flags)


def _control_tokens(tokenizer: Any) -> dict[str, int]:
    """Name -> id of special tokens, and of the tokens with which the template marks turns; also as
    the template spells them, where the tokenizer takes that for the same."""
    backend = tokenizer.backend_tokenizer
    normal = _normalizer(backend.normalizer)
    added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    ids = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    special = {name for name, token in added.items() if token.special}
    special |= set(tokenizer.all_special_tokens) & added.keys()
    others: dict[str, int] = {}
    if tokenizer.chat_template:
        template = ChatTemplate(tokenizer)
        try:
            shown = template.render([*SAMPLE, SAMPLE[0]], None, True)[0]
        except BadRecord:
            shown = ""
        tags = {*TAGS, *TAGS.values()}
        for name in added.keys() - tags - {""}:
            if name in shown or (added[name].normalized and normal(name) in normal(shown)):
                special.add(name)
        if backend.normalizer:
            for text in (shown, template.source(None)):
                encoding = backend.encode(text, add_special_tokens=False)
                places = zip(encoding.ids, encoding.offsets, strict=True)
                others |= {text[begin:end].strip(): i for i, (begin, end) in places}
    names = {normal(name): ids[name] for name in special if added[name].normalized}
    others = {text: i for text, i in others.items() if names.get(normal(text)) == i}
    # A token of one character cannot be broken, and none is one by mistake.
    found = others | {name: ids[name] for name in special}
    return {name: i for name, i in sorted(found.items()) if len(name) > 1}


def _heads(names: Sequence[str]) -> tuple[str, ...]:
    """Few short texts, one of which each name begins with: two letters, for `<` alone is in many a
    text."""
    for length in (2, 1):
        found = {name[:length] for name in names}
        if len(found) <= _HEADS:
            break
    return tuple(sorted(found))


def _any_of(names: Iterable[str]) -> str:
    """A pattern for the longest of `names` at a place, as a tree: a tokenizer may have a thousand
    control tokens, and one by one they would be tried at every `<`."""
    tree: dict[str, Any] = {}
    for name in names:
        node = tree
        for character in name:
            node = node.setdefault(character, {})
        node[""] = {}

    def pattern(node: dict[str, Any]) -> str:
        ways = [re.escape(one) + pattern(rest) for one, rest in sorted(node.items()) if one]
        if not ways:
            return ""
        body = "|".join(ways)
        if "" in node:
            return f"(?:{body})?"
        return f"(?:{body})" if len(ways) > 1 else body

    return pattern(tree) or "(?!)"


def _broken(text: str, find: re.Pattern[str], mark: str) -> str:
    while find.search(text):  # what is left of one may hold another
        text = find.sub(lambda match: match[0][0] + mark + match[0][1:], text)
    return text


def _replaced(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(str(key)): _replaced(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replaced(item, change) for item in value]
    return value


def _merged(pair: str | Sequence[str], prefix: str) -> tuple[str, str, str]:
    """The two texts of a merge, and what it makes of them."""
    one, other = pair.split(" ") if isinstance(pair, str) else pair
    return one, other, one + other.removeprefix(prefix)


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Give entries of a model's vocabulary other names; no merge makes or takes them any more."""
    vocabulary = model.get("vocab")
    if "merges" in model:
        prefix = model.get("continuing_subword_prefix") or ""
        model["merges"] = [
            pair for pair in model["merges"] if names.keys().isdisjoint(_merged(pair, prefix))
        ]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(own, own): i for own, i in vocabulary.items()}
    elif isinstance(vocabulary, list):  # Unigram: [piece, score], by id
        model["vocab"] = [[names.get(own, own), score] for own, score in vocabulary]
    if isinstance(unknown := model.get("unk_token"), str):
        model["unk_token"] = names.get(unknown, unknown)
