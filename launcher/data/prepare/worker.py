"""What a worker process does to a chunk: parse, read, render, tokenise, cut, and sort into
splits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from launcher.config.schema import Overlong, Ranking, conversion, variants
from launcher.data.cache import Column
from launcher.data.chat.masking import ChatOptions, LeftOut, kinds_as_bits
from launcher.data.formats import Example, Reader
from launcher.data.formats.answers import question_of
from launcher.data.formats.base import BadRecord
from launcher.data.formats.learned import examples_for
from launcher.data.prepare.encoding import Encoded, Piece
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
    lost = 5
    """Dropped because nothing to learn is left within `data.max_length`."""


_FATES = {
    None: Fate.whole,
    Overlong.truncate: Fate.truncated,
    Overlong.cut_prompt: Fate.truncated,
    Overlong.split: Fate.split,
    Overlong.drop: Fate.lost,
}


_NOTHING = Encoded([])


class Encoder(Protocol):
    """What an objective makes tokens of examples with."""

    def encode(self, examples: Sequence[Example]) -> list[Encoded | BadRecord]:
        """Each example as one piece or several, or why it cannot be used."""
        ...

    def cut(
        self, piece: Piece, max_length: int, overlong: Overlong
    ) -> tuple[list[Piece], Overlong | None]:
        """A piece within `max_length`, and what was done to it; [] where nothing to learn is
        left."""
        ...


@dataclass(frozen=True, slots=True)
class EncodingOptions:
    """What decides how a record becomes tokens."""

    format: str
    columns: Mapping[str, str]
    labels: Sequence[str]
    chat: ChatOptions
    max_length: int
    overlong: Overlong
    ranked: Ranking
    objective: dict[str, Any]
    """Its options as plain data: the class of a user's own file cannot be sent to a process."""
    share: float
    """Share of records that go to the validation side."""
    seed: int
    learns: bool = True
    """Whether the first side is learned from."""


@dataclass(slots=True)
class EncodedChunk:
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
    asked: list[int] = field(default_factory=list)
    """Places among the records read of those that have no answer."""
    documents: list[tuple[int, ...]] = field(default_factory=list)
    """Lengths of each sequence's documents, where the objective groups some."""
    columns: dict[str, list[Any]] = field(default_factory=dict)
    """Of each of the objective's columns the values of every sequence."""

    def first(self, records: int) -> EncodedChunk:
        """The batch as if only its first `records` records had been read."""
        kept = int(self.pieces[:records].sum())
        tokens = int(self.lengths[:kept].sum())
        return EncodedChunk(
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
            [place for place in self.asked if place < records],
            self.documents[:kept],
            {name: values[:kept] for name, values in self.columns.items()},
        )


class Worker:
    """Calls with a `Chunk` give its batches: [train], or [train, validation] if a share is held
    out."""

    def __init__(self, tokenizer: Any, options: EncodingOptions) -> None:
        self._tokenizer = tokenizer
        self._options = options
        own = conversion.objective(options.objective)
        names = own.label_names(list(options.labels))
        self._reader = Reader(options.format, options.columns, names, asks=own.samples)
        self._objective = variants.objective(own)
        self._columns: list[Column] = [*self._objective.columns]
        self._encoder: Encoder = self._objective.encoder(tokenizer, options.chat)

    def __reduce__(self) -> Any:  # compiled templates cannot be sent to a process
        return Worker, (self._tokenizer, self._options)

    def __call__(self, chunk: Chunk) -> list[EncodedChunk]:
        """All records of the chunk. With bad_records=stop, those behind the first bad one are
        left."""
        lines: list[int] = []
        sides: list[int] = []
        weights: list[float] = []
        encoded: list[Encoded | BadRecord] = []
        examples: list[Example] = []
        places: list[int] = []
        for line, raw in chunk.parse():
            lines.append(line)
            sides.append(self._side(raw))
            read = self._reader.read(raw)
            if isinstance(read, BadRecord):
                encoded.append(read)
                weights.append(1.0)
                continue
            weights.append(read[1])
            taken = examples_for(read[0], self._objective.options, self._options.ranked)
            refused = next(filter(None, map(self._objective.refusal, taken)), None)
            encoded.append(refused or _NOTHING)
            if refused is None:
                places += [len(encoded) - 1] * len(taken)
                examples += taken
        for place, item in zip(places, self._encoder.encode(examples), strict=True):
            encoded[place] = _together(encoded[place], item)
        records = list(zip(lines, encoded, weights, strict=True))
        return [
            self._batch(
                chunk.file, side, [r for r, own in zip(records, sides, strict=True) if own == side]
            )
            for side in range(2 if self._options.share else 1)
        ]

    def _side(self, raw: Any) -> int:
        own = self._options
        if not own.share or isinstance(raw, BadRecord):
            return TRAIN
        asked = question_of(raw, own.format, own.columns)
        return VALIDATION if is_held_out(asked, own.share, own.seed) else TRAIN

    def _batch(
        self,
        file: int,
        side: int,
        records: Sequence[tuple[int, Encoded | BadRecord, float]],
    ) -> EncodedChunk:
        fates = np.zeros(len(records), np.uint8)
        counts = np.zeros(len(records), np.int32)
        done: list[Piece] = []
        lines: list[int] = []
        weights: list[float] = []
        bad: list[tuple[int, int, BadRecord]] = []
        lossy: list[tuple[int, int, tuple[LeftOut, ...]]] = []
        spelled: list[tuple[int, int]] = []
        asked: list[int] = []
        bits: list[int] = []
        learns = self._options.learns and side == TRAIN
        for place, (line, item, weight) in enumerate(records):
            if isinstance(item, BadRecord):
                fates[place] = Fate.skipped
                bad.append((place, line, item))
                continue
            # It would be computed for nothing.
            if not weight or (learns and not item.trains):
                fates[place] = Fate.dropped
                continue
            pieces, deed = self._cut(item)
            fates[place], counts[place] = _FATES[deed], len(pieces)
            done += pieces
            if pieces and item.left_out:
                lossy.append((place, line, item.left_out))
            if pieces and item.has_literals:
                spelled.append((place, line))
            if pieces and item.is_asked:
                asked.append(place)
            bits += [kinds_as_bits(item.left_out)] * len(pieces)
            lines += [line] * len(pieces)
            weights += [weight] * len(pieces)
        return EncodedChunk(
            _joined([piece.tokens for piece in done], np.int32),
            _joined([piece.targets for piece in done], np.uint8),
            np.array([len(piece.tokens) for piece in done], np.int32),
            np.array([(file, line) for line in lines], np.int32).reshape(-1, 2),
            np.array(weights, np.float32),
            np.array(bits, np.uint8),
            fates,
            counts,
            bad,
            lossy,
            spelled,
            asked,
            [piece.lengths for piece in done],
            {c.name: [piece.columns[c.name] for piece in done] for c in self._columns},
        )

    def _cut(self, item: Encoded) -> tuple[list[Piece], Overlong | None]:
        limits = self._options.max_length, self._options.overlong
        done = [self._encoder.cut(piece, *limits) for piece in item.pieces]
        pieces = [piece for own, _ in done for piece in own]
        deeds = [deed for _, deed in done if deed is not None]
        kept = [deed for deed in deeds if deed is not Overlong.drop]
        # A record of which some sequences are left is not dropped, but cut.
        if pieces and deeds and not kept:
            return pieces, Overlong.truncate
        return pieces, next(iter(kept or deeds), None)


def _together(made: Encoded | BadRecord, item: Encoded | BadRecord) -> Encoded | BadRecord:
    """What several examples of one record become."""
    if made is _NOTHING or isinstance(made, BadRecord):
        return item if made is _NOTHING else made
    if isinstance(item, BadRecord):
        return item
    return Encoded(
        made.pieces + item.pieces,
        tuple(dict.fromkeys((*made.left_out, *item.left_out))),
        made.has_literals or item.has_literals,
        made.trains and item.trains,
        made.is_asked or item.is_asked,
    )


def is_held_out(raw: Any, share: float, seed: int) -> bool:
    """Whether a record belongs to the held-out share, by what `question_of` says of it."""
    return not isinstance(raw, BadRecord) and unit_hash(raw, seed) < share


def unit_hash(record: Any, seed: int) -> float:
    """A number in [0, 1) that depends on the record's content and the seed alone."""
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), default=str)
    digest = hashlib.blake2b(f"{seed} {text}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") / 2**64


def _joined(arrays: list[NDArray[Any]], dtype: Any) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype)
