"""Two answers to one prompt as tokens: documents of one record, which stay in one pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from launcher.config.schema import Overlong
from launcher.data.chat.masking import ChatOptions
from launcher.data.formats import Example
from launcher.data.formats.base import BadRecord, Preference
from launcher.data.formats.learned import side_of
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
        pairs = [example for example in examples if isinstance(example, Preference)]
        assert len(pairs) == len(examples)
        sides = [
            side_of(pair, answer, has_template=self._has_template)
            for pair in pairs
            for answer in (pair.chosen, pair.rejected)
        ]
        found = self._encoder.encode(sides)
        return [
            _joined(*found[2 * i : 2 * i + 2], margin=pair.margin or 0.0)
            for i, pair in enumerate(pairs)
        ]

    def cut(
        self, piece: Piece, max_length: int, overlong: Overlong
    ) -> tuple[list[Piece], Overlong | None]:
        """The pair within `max_length` tokens, both answers together: with `truncate` the longer
        one is cut at its end, with `cut_prompt` the beginnings of both prompts are."""
        if len(piece.tokens) <= max_length:
            return [piece], None
        if overlong is Overlong.cut_prompt:
            return self._encoder.cut(piece, max_length, overlong)
        kept = shorten(piece, max_length) if overlong is Overlong.truncate else None
        return ([kept], overlong) if kept else ([], Overlong.drop)


def _joined(
    chosen: Encoded | BadRecord, rejected: Encoded | BadRecord, *, margin: float
) -> Encoded | BadRecord:
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
        {MARGIN: [margin, margin]},
    )
    return Encoded(
        [piece],
        tuple(dict.fromkeys((*chosen.left_out, *rejected.left_out))),
        chosen.has_literals or rejected.has_literals,
    )
