"""Answers to prompts as tokens: two documents of one record, which stay in one pack."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from launcher.config.schema import Overlong
from launcher.data.chat.masking import ChatOptions
from launcher.data.formats import Example
from launcher.data.formats.base import BadRecord, Preference, Unpaired
from launcher.data.formats.learned import side_of
from launcher.data.prepare.encoding import Encoded, ExampleEncoder, Piece, shorten

#: Column of the difference between both ratings, 0 where there are none.
MARGIN = "margin"
#: Column of what an answer is: 1 good, 0 bad.
VERDICT = "verdict"


class _AnswerEncoder:
    """Two documents a record, each a prompt with an answer, which alone is learned."""

    def __init__(self, tokenizer: Any, chat: ChatOptions) -> None:
        self._encoder = ExampleEncoder(tokenizer, chat=chat)
        self._has_template = bool(tokenizer.chat_template)

    def cut(
        self, piece: Piece, max_length: int, overlong: Overlong
    ) -> tuple[list[Piece], Overlong | None]:
        """Both within `max_length` tokens together: with `truncate` the longer
        one is cut at its end, with `cut_prompt` the beginnings of both prompts are."""
        if len(piece.tokens) <= max_length:
            return [piece], None
        if overlong is Overlong.cut_prompt:
            return self._encoder.cut(piece, max_length, overlong)
        kept = shorten(piece, max_length) if overlong is Overlong.truncate else None
        return ([kept], overlong) if kept else ([], Overlong.drop)


class PairEncoder(_AnswerEncoder):
    """Chosen and rejected answer, each behind the prompt."""

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
            _joined(found[2 * i : 2 * i + 2], ("chosen", "rejected"), MARGIN, pair.margin or 0.0)
            for i, pair in enumerate(pairs)
        ]


class VerdictEncoder(_AnswerEncoder):
    """An answer, and one to another prompt in its place: that of the last example before it with
    another prompt, the first ones behind the last; where all have one prompt, of the one before."""

    def encode(self, examples: Sequence[Example]) -> list[Encoded | BadRecord]:
        """One piece of two documents for each answer, or why it cannot be used."""
        given = [example for example in examples if isinstance(example, Unpaired)]
        assert len(given) == len(examples)
        sides = [
            side_of(example, answer, has_template=self._has_template)
            for i, example in enumerate(given)
            for answer in (example.answer, _other(given, i).answer)
        ]
        found = self._encoder.encode(sides)
        return [
            _joined(
                found[2 * i : 2 * i + 2], ("answer", "another answer"), VERDICT, float(one.label)
            )
            for i, one in enumerate(given)
        ]


def _other(given: Sequence[Unpaired], i: int) -> Unpaired:
    """The example whose answer is tried behind the prompt of example `i`."""
    before = (given[i - k] for k in range(1, len(given)))
    return next((one for one in before if one.prompt != given[i].prompt), given[i - 1])


def _joined(
    sides: Sequence[Encoded | BadRecord], names: Sequence[str], column: str, value: float
) -> Encoded | BadRecord:
    """Both documents as one piece, with the value of a column; pairs have to differ."""
    whole: list[Encoded] = []
    for name, side in zip(names, sides, strict=True):
        if isinstance(side, BadRecord):
            return BadRecord(f"{name}: {side.found}", side.hint)
        whole.append(side)
    if any(len(side.pieces) != 1 for side in whole):
        return BadRecord(
            "an answer that the chat template writes in several sequences",
            hint="data.thoughts=last, or remove the record",
        )
    pieces = [piece for side in whole for piece in side.pieces]
    if column == MARGIN and np.array_equal(pieces[0].tokens, pieces[1].tokens):
        return BadRecord(
            "both answers are the same once they are tokens",
            hint="the chat template leaves out where they differ: remove the record, or set"
            " data.bad_records=skip",
        )
    piece = Piece(
        np.concatenate([piece.tokens for piece in pieces]),
        np.concatenate([piece.targets for piece in pieces]),
        tuple(len(piece.tokens) for piece in pieces),
        {column: [value, value]},
    )
    return Encoded(
        [piece],
        tuple(dict.fromkeys(left for side in whole for left in side.left_out)),
        any(side.has_literals for side in whole),
    )
