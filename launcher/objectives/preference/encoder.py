"""Two answers to one prompt as tokens: documents of one record, which stay in one pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from launcher.config.schema import Overlong
from launcher.data.chat.masking import ChatOptions
from launcher.data.formats import Example
from launcher.data.formats.base import BadRecord, Chat, Pair, Preference
from launcher.data.prepare.encoding import Encoded, ExampleEncoder, Piece, shorten

#: Column of the difference between both ratings, 0 where there are none.
MARGIN = "margin"


class PairEncoder:
    """Chosen and rejected answer, each behind the prompt. What is learned is the answer alone."""

    def __init__(self, tokenizer: Any, chat: ChatOptions) -> None:
        self._encoder = ExampleEncoder(tokenizer, chat=chat)
        self._has_template = bool(tokenizer.chat_template)

    def encode(self, examples: Sequence[Example]) -> list[Encoded | BadRecord]:
        """One piece of two documents for each pair, or why it cannot be used."""
        sides: list[Example] = []
        for example in examples:
            assert isinstance(example, Preference)
            sides += [self._side(example, answer) for answer in (example.chosen, example.rejected)]
        found = self._encoder.encode(sides)
        return [_joined(*found[i : i + 2]) for i in range(0, len(found), 2)]

    def _side(self, example: Preference, answer: list[dict[str, Any]]) -> Example:
        """A prompt with one of its answers."""
        prompt = example.prompt
        if not self._has_template and (pair := _plain(prompt, answer)) is not None:
            return pair
        messages = [*prompt, *answer]
        earlier = (i for i, message in enumerate(prompt) if message["role"] == "assistant")
        return Chat(messages, example.tools, frozenset(earlier), example.template_options)

    def cut(
        self, piece: Piece, max_length: int, overlong: Overlong
    ) -> tuple[list[Piece], Overlong | None]:
        """The pair within `max_length` tokens, both answers together: with `truncate` the longer
        one is cut at its end."""
        if len(piece.tokens) <= max_length:
            return [piece], None
        kept = shorten(piece, max_length) if overlong is Overlong.truncate else None
        return ([kept], overlong) if kept else ([], Overlong.drop)


def _plain(prompt: list[dict[str, Any]], answer: list[dict[str, Any]]) -> Pair | None:
    """Prompt and completion as texts, for a tokenizer without a chat template; None for what only
    a template can write."""
    texts = [message.get("content") for message in (*prompt, *answer)]
    roles = [message["role"] for message in (*prompt, *answer)]
    if roles == ["user", "assistant"] and all(isinstance(text, str) for text in texts):
        return Pair(str(texts[0]), str(texts[1]))
    return None


def _joined(chosen: Encoded | BadRecord, rejected: Encoded | BadRecord) -> Encoded | BadRecord:
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if isinstance(side, BadRecord):
            return BadRecord(f"{name}: {side.found}", side.hint)
    assert isinstance(chosen, Encoded)
    assert isinstance(rejected, Encoded)
    if any(len(side.pieces) != 1 for side in (chosen, rejected)):
        return BadRecord(
            "an answer that the chat template writes in several sequences",
            hint="data.thoughts=last, or remove the record",
        )
    pieces = chosen.pieces + rejected.pieces
    if np.array_equal(pieces[0].tokens, pieces[1].tokens):
        return BadRecord(
            "both answers are the same once they are tokens",
            hint="the chat template leaves out where they differ: remove the record, or set"
            " data.bad_records=skip",
        )
    piece = Piece(
        np.concatenate([piece.tokens for piece in pieces]),
        np.concatenate([piece.targets for piece in pieces]),
        tuple(len(piece.tokens) for piece in pieces),
        {MARGIN: [0.0, 0.0]},
    )
    return Encoded(
        [piece],
        tuple(dict.fromkeys((*chosen.left_out, *rejected.left_out))),
        chosen.has_literals or rejected.has_literals,
    )
