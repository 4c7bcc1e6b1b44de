"""From labelled texts to tokens, for a classifier: what the tokenizer itself makes of a text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import Any

import numpy as np

from launcher.config.schema import Overlong
from launcher.data.formats.base import BadRecord, Example, Labelled
from launcher.data.prepare.encoding import Encoded, Piece
from launcher.objectives.classify.labels import COLUMN


class TextEncoder:
    """Tokens of texts alone, special tokens as the tokenizer adds them: no template, no end.

    So `tokenizer(text)` gives a user of the exported model the tokens of training.
    """

    def __init__(
        self, tokenizer: Any, multi_label: bool = False, out_of_scope: str | None = None
    ) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        added = reversed(self._backend.encode("a").special_tokens_mask)
        self._closing = sum(1 for _ in takewhile(bool, added))
        self._multi_label, self._out_of_scope = multi_label, out_of_scope

    def encode(self, examples: Sequence[Example]) -> list[Encoded | BadRecord]:
        """Tokens of each example, the last one marked: there the class is read off."""
        reasons = [refusal(example, self._multi_label) for example in examples]
        texts = [
            example.prompt
            for example, reason in zip(examples, reasons, strict=True)
            if reason is None and isinstance(example, Labelled)
        ]
        encodings = iter(self._backend.encode_batch(texts, add_special_tokens=True))
        return [
            reason or self._encoded(next(encodings).ids, example)
            for example, reason in zip(examples, reasons, strict=True)
        ]

    def _encoded(self, ids: list[int], example: Example) -> Encoded | BadRecord:
        assert isinstance(example, Labelled)
        if not ids:
            return BadRecord("the tokenizer makes no token of the text", hint="remove the record")
        marks = np.zeros(len(ids), np.uint8)
        marks[-1] = 1
        names = list(example.labels)
        piece = Piece(np.array(ids, np.int32), marks, columns={COLUMN: [names]})
        return Encoded([piece], trains=self._out_of_scope not in names)

    def cut(
        self, piece: Piece, max_length: int, overlong: Overlong
    ) -> tuple[list[Piece], Overlong | None]:
        """The text within `max_length`; what the tokenizer closes it with (BERT's [SEP], mBART's
        end and language) is kept, as transformers does when it truncates."""
        tokens, targets, *_ = piece
        if len(tokens) <= max_length:
            return [piece], None
        if overlong is Overlong.drop:
            return [], Overlong.drop
        closing = min(self._closing, max_length)
        kept = np.append(tokens[: max_length - closing], tokens[len(tokens) - closing :])
        return [piece._replace(tokens=kept, targets=targets[-max_length:])], Overlong.truncate


def refusal(example: Example, multi_label: bool) -> BadRecord | None:
    """Why a classifier cannot learn an example; None if it can."""
    if not isinstance(example, Labelled):
        return BadRecord(
            f"a record without a label ({type(example).__name__.lower()})",
            hint="objective=classify learns records {text, label}: map columns with "
            "'data.columns={text: COLUMN, label: COLUMN}', or use objective=sft",
        )
    count = len(example.labels)
    if count != 1 and not multi_label:
        hint = "objective.multi_label=true learns any number of labels, none included"
        return BadRecord(f"the record has {count} labels", hint=hint)
    if not example.prompt.isascii() and not _is_unicode(example.prompt):
        return BadRecord("a character that is not Unicode", hint="write the text as UTF-8")
    return None


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
