"""What a worker process does to a chunk: parse, read, render, tokenise, cut, and sort into
splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.config.schema import Overlong
from launcher.data.encoding import Encoded, Encoder, Piece, cut
from launcher.data.formats import Example, Reader
from launcher.data.formats.base import BadRecord, Labelled
from launcher.data.labelled import LabelOptions, TextEncoder
from launcher.data.masking import ChatOptions, LeftOut, kinds_as_bits
from launcher.data.sources import Chunk

#: Splits in the order in which a worker returns them.
TRAIN, VALIDATION = 0, 1


class Fate(IntEnum):
    """What became of one record."""

    whole = 0
    skipped = 1
    truncated = 2
    dropped = 3
    split = 4


_FATES = {
    None: Fate.whole,
    Overlong.truncate: Fate.truncated,
    Overlong.split: Fate.split,
    Overlong.drop: Fate.dropped,
}


_NOTHING = Encoded([])


@dataclass(frozen=True, slots=True)
class Options:
    """What decides how a record becomes tokens."""

    format: str
    columns: Mapping[str, str]
    labels: Sequence[str]
    chat: ChatOptions
    max_length: int
    overlong: Overlong
    all_targets: bool
    share: float
    """Share of records that go to the validation side."""
    seed: int
    classes: LabelOptions | None = None
    """How labels are read, if they are learned by a head instead of as text."""


@dataclass(slots=True)
class Batch:
    """One side of a chunk. `pieces` says how many sequences each of the records read has become."""

    tokens: NDArray[np.int32]
    targets: NDArray[np.uint8]
    lengths: NDArray[np.int32]
    origins: NDArray[np.int32]
    weights: NDArray[np.float32]
    left_out: NDArray[np.uint8]
    """Kinds of what the chat template leaves out of each sequence's record, as bits."""
    fates: NDArray[np.uint8]
    pieces: NDArray[np.int32]
    bad: list[tuple[int, int, BadRecord]] = field(default_factory=list)
    """Place among the records read, line, and reason."""
    lossy: list[tuple[int, int, tuple[LeftOut, ...]]] = field(default_factory=list)
    """Place among the records read, line, and what the chat template leaves out."""
    spelled: list[tuple[int, int]] = field(default_factory=list)
    """Place among the records read, and line, of those that spell control tokens, kept as text."""
    labels: list[tuple[str, ...]] | None = None
    """Class names of each sequence, for a classifier."""

    def first(self, records: int) -> Batch:
        """The batch as if only its first `records` records had been read."""
        kept = int(self.pieces[:records].sum())
        tokens = int(self.lengths[:kept].sum())
        return Batch(
            self.tokens[:tokens],
            self.targets[:tokens],
            self.lengths[:kept],
            self.origins[:kept],
            self.weights[:kept],
            self.left_out[:kept],
            self.fates[:records],
            self.pieces[:records],
            [bad for bad in self.bad if bad[0] < records],
            [lossy for lossy in self.lossy if lossy[0] < records],
            [spelled for spelled in self.spelled if spelled[0] < records],
            None if self.labels is None else self.labels[:kept],
        )


class Worker:
    """Calls with a `Chunk` give its batches: [train], or [train, validation] if a share is held
    out."""

    def __init__(self, tokenizer: Any, options: Options) -> None:
        self._tokenizer = tokenizer
        self._options = options
        labels, classes = options.labels, options.classes
        if classes and classes.out_of_scope and labels:
            labels = [*labels, classes.out_of_scope]
        self._reader = Reader(options.format, options.columns, labels)
        self._texts = TextEncoder(tokenizer, classes) if classes else None
        self._encoder = Encoder(tokenizer, chat=options.chat, all_targets=options.all_targets)

    def __reduce__(self) -> Any:  # compiled templates cannot be sent to a process
        return Worker, (self._tokenizer, self._options)

    def __call__(self, chunk: Chunk) -> list[Batch]:
        """All records of the chunk. With bad_records=stop, those behind the first bad one are
        left."""
        lines: list[int] = []
        sides: list[int] = []
        weights: list[float] = []
        labels: list[tuple[str, ...]] = []
        encoded: list[Encoded | BadRecord] = []
        examples: list[Example] = []
        places: list[int] = []
        for line, raw in chunk.parse():
            lines.append(line)
            sides.append(self._side(raw))
            read = self._reader.read(raw)
            labels.append(())
            if isinstance(read, BadRecord):
                encoded.append(read)
                weights.append(1.0)
                continue
            places.append(len(encoded))
            examples.append(read[0])
            weights.append(read[1])
            encoded.append(_NOTHING)
            if isinstance(read[0], Labelled):
                labels[-1] = read[0].labels
        encoder = self._texts or self._encoder
        for place, item in zip(places, encoder.encode(examples), strict=True):
            encoded[place] = item
        records = list(zip(lines, encoded, weights, labels, strict=True))
        return [
            self._batch(
                chunk.file, side, [r for r, own in zip(records, sides, strict=True) if own == side]
            )
            for side in range(2 if self._options.share else 1)
        ]

    def _side(self, raw: Any) -> int:
        if not self._options.share or isinstance(raw, BadRecord):
            return TRAIN
        return VALIDATION if unit_hash(raw, self._options.seed) < self._options.share else TRAIN

    def _batch(
        self,
        file: int,
        side: int,
        records: Sequence[tuple[int, Encoded | BadRecord, float, tuple[str, ...]]],
    ) -> Batch:
        fates = np.zeros(len(records), np.uint8)
        counts = np.zeros(len(records), np.int32)
        done: list[Piece] = []
        lines: list[int] = []
        weights: list[float] = []
        labels: list[tuple[str, ...]] = []
        bad: list[tuple[int, int, BadRecord]] = []
        lossy: list[tuple[int, int, tuple[LeftOut, ...]]] = []
        spelled: list[tuple[int, int]] = []
        bits: list[int] = []
        classes = self._options.classes
        for place, (line, item, weight, names) in enumerate(records):
            if isinstance(item, BadRecord):
                fates[place] = Fate.skipped
                bad.append((place, line, item))
                continue
            # It would be computed for nothing.
            if not weight or (classes and classes.leaves_out(names, side == VALIDATION)):
                fates[place] = Fate.dropped
                continue
            pieces, deed = self._cut(item)
            fates[place], counts[place] = _FATES[deed], len(pieces)
            done += pieces
            if pieces and item.left_out:
                lossy.append((place, line, item.left_out))
            if pieces and item.has_literals:
                spelled.append((place, line))
            bits += [kinds_as_bits(item.left_out)] * len(pieces)
            lines += [line] * len(pieces)
            weights += [weight] * len(pieces)
            labels += [names] * len(pieces)
        return Batch(
            _joined([tokens for tokens, _ in done], np.int32),
            _joined([targets for _, targets in done], np.uint8),
            np.array([len(tokens) for tokens, _ in done], np.int32),
            np.array([(file, line) for line in lines], np.int32).reshape(-1, 2),
            np.array(weights, np.float32),
            np.array(bits, np.uint8),
            fates,
            counts,
            bad,
            lossy,
            spelled,
            labels if classes else None,
        )

    def _cut(self, item: Encoded) -> tuple[list[Piece], Overlong | None]:
        shorten = self._texts.cut if self._texts else cut
        options = self._options
        done = [shorten(piece, options.max_length, options.overlong) for piece in item.pieces]
        pieces = [piece for own, _ in done for piece in own]
        deeds = [deed for _, deed in done if deed is not None]
        kept = [deed for deed in deeds if deed is not Overlong.drop]
        # A record of which some sequences are left is not dropped, but cut.
        if pieces and deeds and not kept:
            return pieces, Overlong.truncate
        return pieces, next(iter(kept or deeds), None)


def unit_hash(record: Any, seed: int) -> float:
    """A number in [0, 1) that depends on the record's content and the seed alone."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), default=str)
    digest = hashlib.blake2b(f"{seed} {text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _joined(arrays: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)
