"""From examples to tokens and target flags, in batches; long records are cut to size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.config.schema import Overlong
from launcher.data.formats.base import BadRecord, Chat, Example, Pair, Text
from launcher.data.masking import ChatRenderer, Span

Piece = tuple[NDArray[np.int32], NDArray[np.uint8]]
"""Tokens and target flags of one sequence, both [length]."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A record as text. `spans` None means that all of it is learned."""

    text: str
    spans: list[Span] | None
    is_chat: bool


class Encoder:
    """Renders and tokenises examples with one tokenizer."""

    def __init__(
        self, tokenizer: Any, *, system: str | None = None, all_targets: bool = False
    ) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._eos: int | None = tokenizer.eos_token_id
        self._system = system
        self._all_targets = all_targets
        self._tokenizer = tokenizer
        self._chat = ChatRenderer(tokenizer, system) if tokenizer.chat_template else None

    def encode(self, examples: Sequence[Example]) -> list[Piece | BadRecord]:
        """Tokens and targets of each example, or why it cannot be used.

        Raises `ConfigError` for conversations when the tokenizer has no chat template.
        """
        rendered = [self._render(example) for example in examples]
        encodings: dict[int, Any] = {}
        for is_chat in (True, False):
            chosen = [
                i
                for i, item in enumerate(rendered)
                if isinstance(item, Rendered) and item.is_chat == is_chat
            ]
            # A chat template writes its special tokens itself; plain text gets the tokenizer's.
            texts = [rendered[i].text for i in chosen]  # type: ignore[union-attr]
            encoded = self._backend.encode_batch(texts, add_special_tokens=not is_chat)
            encodings.update(zip(chosen, encoded, strict=True))
        return [
            item if isinstance(item, BadRecord) else self._piece(item, encodings[i])
            for i, item in enumerate(rendered)
        ]

    def _render(self, example: Example) -> Rendered | BadRecord:
        try:
            item = self._as_text(example)
            item.text.encode()
        except BadRecord as error:
            return error
        except UnicodeEncodeError as error:
            invalid = 0xDC80 <= ord(error.object[error.start]) <= 0xDCFF
            return BadRecord(
                "invalid UTF-8" if invalid else "half of a surrogate pair, which is no character",
                hint="convert the file to UTF-8" if invalid else "write the character as UTF-8",
            )
        return item

    def _as_text(self, example: Example) -> Rendered:
        if isinstance(example, Text):
            return Rendered(example.text, None, is_chat=False)
        if isinstance(example, Pair):
            if not self._chat:
                return self._plain(example)
            turns = (("user", example.prompt), ("assistant", example.completion))
            example = Chat([{"role": role, "content": content} for role, content in turns])
        chat = self._chat or ChatRenderer(self._tokenizer)
        text, spans = chat.render(example)
        return Rendered(text, None if self._all_targets else spans, is_chat=True)

    def _plain(self, pair: Pair) -> Rendered:
        """Prompt and completion without a chat template, on lines of their own."""
        prompt = f"{self._system}\n\n{pair.prompt}" if self._system else pair.prompt
        if prompt and not prompt[-1].isspace() and not pair.completion[:1].isspace():
            prompt += "\n"
        text = prompt + pair.completion
        spans = None if self._all_targets else [(len(prompt), len(text))]
        return Rendered(text, spans, is_chat=False)

    def _piece(self, item: Rendered, encoding: Any) -> Piece | BadRecord:
        ids = encoding.ids
        length = len(ids)
        if not item.is_chat and self._eos is not None and ids[-1:] != [self._eos]:
            ids.append(self._eos)
        if len(ids) < 2:
            return BadRecord("fewer than two tokens", hint="there is nothing to predict: remove it")
        tokens = np.array(ids, np.int32)
        if item.spans is None:
            return tokens, np.ones(len(ids), np.uint8)
        targets = np.zeros(len(ids), np.uint8)
        for span in item.spans:
            first, last = _token_range(encoding, *span)
            targets[first:last] = 1
        targets[length:] = 1
        if not targets[1:].any():
            return BadRecord(
                f"no token of the record is a target: {item.text[:200]!r}",
                hint="the assistant's turn is empty, or the template leaves it out; "
                "`launcher data show` shows what is learned",
            )
        return tokens, targets


def _token_range(encoding: Any, begin: int, end: int) -> tuple[int, int]:
    """The tokens that hold characters [begin, end), those that straddle a border included."""
    first, last = encoding.char_to_token(begin), encoding.char_to_token(end - 1)
    if first is None or last is None:  # the tokenizer drops that character, e.g. white space
        inside = [i for i, (a, b) in enumerate(encoding.offsets) if a < end and b > begin]
        return (inside[0], inside[-1] + 1) if inside else (0, 0)
    # A character of several bytes may take several tokens; the first of them was found.
    while (chars := encoding.token_to_chars(last + 1)) and chars[0] < end and chars[1] > begin:
        last += 1
    return first, last + 1


def cut(piece: Piece, max_length: int, overlong: Overlong) -> tuple[list[Piece], Overlong | None]:
    """The record within `max_length`, in pieces that each hold a target, and what was done to it.

    Pieces without a target would be computed for nothing; a record that has none left is dropped.
    """
    tokens, targets = piece
    if len(tokens) <= max_length:
        return [piece], None
    if overlong is Overlong.drop:
        return [], Overlong.drop
    last = max_length if overlong is Overlong.truncate else len(tokens)
    pieces = [
        (tokens[begin : begin + max_length], targets[begin : begin + max_length])
        for begin in range(0, last, max_length)
    ]
    pieces = [(t, learned) for t, learned in pieces if learned[1:].any()]
    return pieces, overlong if pieces else Overlong.drop
