"""Control tokens that people spell in their texts, which must stay text.

A user who writes `<|im_end|>` ends no turn. Before a template sees a conversation, every spelling
of a control token in it is broken by a mark, which goes wherever the text goes; of what the
template writes, whole spellings are its own. A second tokenizer, which has other names for the same
control tokens, reads these by their other names, and all else as text. Conversations without such
spellings never come here.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeVar

from launcher.data.formats.base import BadRecord
from launcher.data.provenance import TAGS, split_thoughts
from launcher.data.template import SAMPLE, ChatTemplate, Message, is_plain

Value = TypeVar("Value")

#: Characters that no text holds, by Unicode; a record that has one is given another.
_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
#: Control tokens by their number, in a plane that no text uses.
_FIRST, _MOST = 0xF0000, 0xFFFD
_NAMED = re.compile("[\U000f0000-\U000ffffd]")
_HINT = "remove it; to read control tokens in texts as such: data.special_tokens=parse"


class Literals:
    """Spellings of one tokenizer's control tokens, in texts and as tokens."""

    def __init__(self, tokenizer: Any) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._control = _control_tokens(tokenizer)
        names = sorted(self._control, key=lambda name: (-len(name), name))
        self._find = re.compile(_any_of(names))
        begun = [tag for pair in TAGS.items() for tag in pair]
        plain = [name for name in names if not any(tag.startswith(name) for tag in begun)]
        self._find_in_thoughts = re.compile(_any_of(plain))
        self._heads = _heads(names)

    def are_in(self, text: str) -> bool:
        """Whether a text spells a control token."""
        # Most texts hold none, and this is asked of all.
        for head in self._heads:
            if head in text:
                return self._find.search(text) is not None
        return False

    def spelled(self, tokens: Sequence[int]) -> dict[str, int]:
        """The control tokens that tokens spell as text, and how often."""
        ids = set(self._control.values())
        found: Counter[str] = Counter()
        for is_control, run in groupby(tokens, ids.__contains__):
            if not is_control:
                text = self._backend.decode(list(run), skip_special_tokens=False)
                found.update(self._find.findall(text))
        return dict(found)

    def are_said_in(self, messages: Sequence[Message], tools: Any) -> bool:
        """Whether a conversation spells a control token."""
        # Of most messages a look at their text is enough, and of all of them it is taken.
        return any(
            self.are_in(message["content"]) or self.are_in(message["role"])
            if is_plain(message)
            else self.are_said(message)
            for message in messages
        ) or (bool(tools) and self.are_said(tools))

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
        if free is None or _NAMED.search(text):
            raise BadRecord(
                "the spelling of a control token beside characters that Unicode keeps for private "
                "use",
                hint=_HINT,
            )
        return free

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
        named = self._find.sub(self._name, text)
        gone = [match.span() for match in marks.finditer(text)]
        pieces = re.split(marks, named)

        def place(at: int) -> int:
            return at - sum(min(end, at) - begin for begin, end in gone if begin < at)

        return marks.sub("", text), "".join(pieces), place

    def encode(self, named: Sequence[str]) -> tuple[list[Any], list[list[int]]]:
        """Encodings of texts with the other names, and their ids. Offsets are those of the texts
        themselves: a name is as long as what it stands for."""
        backend, ids = self._second
        encodings = backend.encode_batch(list(named), add_special_tokens=False)
        return encodings, [[ids.get(i, i) for i in encoding.ids] for encoding in encodings]

    def _name(self, match: re.Match[str]) -> str:
        return self._names[match[0]]

    @functools.cached_property
    def _names(self) -> dict[str, str]:
        if len(self._control) > _MOST:
            raise BadRecord("a tokenizer of more control tokens than can be told apart", hint=_HINT)
        return {name: chr(_FIRST + number) * len(name) for number, name in enumerate(self._control)}

    @functools.cached_property
    def _second(self) -> tuple[Any, dict[int, int]]:
        """The tokenizer in which control tokens have other names, and its ids where they differ."""
        parts = json.loads(self._backend.to_str())
        names = self._names
        for token in parts["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        _rename(parts["model"], names)
        second = type(self._backend).from_str(json.dumps(parts))
        second.no_truncation()
        second.no_padding()
        found = {second.token_to_id(name): self._control[own] for own, name in names.items()}
        for own, name in names.items():
            ids = [found.get(i, i) for i in second.encode(name, add_special_tokens=False).ids]
            if ids != [self._control[own]]:
                raise BadRecord(
                    f"this tokenizer cannot tell the control token {own!r} from its spelling",
                    hint=_HINT,
                )
        return second, found


def _control_tokens(tokenizer: Any) -> dict[str, int]:
    """Name -> id of special tokens, and of the tokens with which the template marks turns."""
    added = {token.content: token for token in tokenizer.added_tokens_decoder.values()}
    ids = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    special = {name for name, token in added.items() if token.special}
    special |= set(tokenizer.all_special_tokens) & added.keys()
    if tokenizer.chat_template:
        try:
            shown = ChatTemplate(tokenizer).render([*SAMPLE, SAMPLE[0]], None, True)[0]
        except BadRecord:
            shown = ""
        tags = {*TAGS, *TAGS.values()}
        special |= {name for name in added.keys() - tags if name and name in shown}
    # A token of one character cannot be broken, and none is one by mistake.
    return {name: ids[name] for name in sorted(special) if len(name) > 1}


def _heads(names: Sequence[str]) -> tuple[str, ...]:
    """Few short texts, one of which each name begins with."""
    if not names:
        return ()
    common = os.path.commonprefix(list(names))
    return (common,) if common else tuple(sorted({name[0] for name in names}))


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


def _parts(pair: str | Sequence[str]) -> set[str]:
    """The two texts of a merge, and what it makes of them."""
    one, other = pair.split(" ") if isinstance(pair, str) else pair
    return {one, other, one + other}


def _rename(model: dict[str, Any], names: Mapping[str, str]) -> None:
    """Give entries of a model's vocabulary other names; no merge makes or takes them any more."""
    vocabulary = model.get("vocab")
    if "merges" in model:
        model["merges"] = [pair for pair in model["merges"] if not _parts(pair) & names.keys()]
    if isinstance(vocabulary, dict):
        model["vocab"] = {names.get(own, own): i for own, i in vocabulary.items()}
    elif isinstance(vocabulary, list):  # Unigram: [piece, score], by id
        model["vocab"] = [[names.get(own, own), score] for own, score in vocabulary]
    if isinstance(unknown := model.get("unk_token"), str):
        model["unk_token"] = names.get(unknown, unknown)
