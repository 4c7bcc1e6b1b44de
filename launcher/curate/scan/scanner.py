"""What a worker process makes of a chunk: numbers of fixed size for each record, no texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.curate.records import profiles
from launcher.curate.records.marks import flags
from launcher.curate.records.record import Record, identity, loose, make, sides
from launcher.curate.records.sketch import Sketcher
from launcher.curate.scan.grams import Grams, evaluated
from launcher.curate.scan.inputs import TRAIN, Task, TaskReader
from launcher.curate.scan.table import COLUMNS, Array, Bad, RecordBatch
from launcher.data.chat.masking import ChatOptions, kinds_as_bits
from launcher.data.formats.answers import question_of
from launcher.data.formats.base import BadRecord, Example
from launcher.data.formats.learned import texts_of
from launcher.data.prepare.encoding import ExampleEncoder
from launcher.data.prepare.worker import is_held_out

_NO_SIDES = (bytes(8), bytes(8), bytes(8))


@dataclass(frozen=True, slots=True)
class ScanOptions:
    """What a worker looks at. `share` > 0 holds that share of the training records out."""

    labels: tuple[str, ...]
    sketcher: Sketcher
    share: float = 0.0
    seed: int = 0
    held_out: bool = False
    """Read the evaluation side (texts for leakage) instead of the training side (everything)."""
    profile: str | None = None
    all_targets: bool = False
    """Whether the objective learns every token."""


class Scanner:
    """Calls with a `Task` give its `RecordBatch`."""

    def __init__(
        self, options: ScanOptions, tokenizer: Any, chat: ChatOptions | None, grams: Grams | None
    ):
        self._options = options
        self._reading = TaskReader(options.labels)
        self._encoder = None
        self._has_template = bool(tokenizer and tokenizer.chat_template)
        if tokenizer:
            all_targets = options.all_targets
            self._encoder = ExampleEncoder(tokenizer, chat=chat, all_targets=all_targets)
        self._grams = grams

    def __call__(self, task: Task) -> RecordBatch:
        """All records of the chunk that are on this side of the split."""
        options = self._options
        records: list[Record] = []
        examples: list[Example] = []
        sizes: list[int] = []
        aside: list[bool] = []
        bad: list[Bad] = []
        breaches: list[tuple[int, str, str]] = []
        check = profiles.PROFILES[options.profile] if options.profile else None
        for line, raw in task.chunk.parse():
            is_held = self._is_held(task, raw)
            if options.held_out and not is_held:
                continue
            if check:
                breaches += [(line, rule, why) for rule, why in check(raw)]
            example = self._reading.example(task, raw)
            if isinstance(example, BadRecord):
                bad.append(self._bad(task, line, example))
                continue
            record = record_of(task, line, raw, example)
            sizes.append(len(record.everything.encode("utf-8", "surrogatepass")))
            records.append(record)
            examples.append(example)
            aside.append(is_held and not options.held_out)
        lengths, refused = self._lengths(examples)
        for number in sorted(refused, reverse=True):
            bad.append(self._bad(task, records[number].line, refused[number]))
            for column in (records, sizes, lengths, aside):
                del column[number]
        return self._batch(task, records, sizes, lengths, aside, bad, breaches)

    def _is_held(self, task: Task, raw: Any) -> bool:
        """Whether a record is one of the evaluation side."""
        if task.input.split != TRAIN:
            return True
        options = self._options
        if not options.share or isinstance(raw, BadRecord):
            return False
        asked = question_of(raw, task.format, task.columns)
        return is_held_out(asked, options.share, options.seed)

    def _bad(self, task: Task, line: int, reason: BadRecord) -> Bad:
        return Bad(task.input.file, line, task.number, reason.found, reason.hint, reason.rule)

    def _lengths(
        self, examples: Sequence[Example]
    ) -> tuple[list[tuple[int, int, int]], dict[int, BadRecord]]:
        """(tokens, targets, kinds of what is left out) of each example, and those that have none.

        Of an example that becomes several sequences the tokens are those of the longest; both
        answers of a pair count together.
        """
        if self._encoder is None or self._options.held_out:
            return [(-1, -1, 0)] * len(examples), {}
        shown = [texts_of(example, has_template=self._has_template) for example in examples]
        encoded = iter(self._encoder.encode([text for own in shown for text in own]))
        lengths: list[tuple[int, int, int]] = []
        refused: dict[int, BadRecord] = {}
        for number, own in enumerate(shown):
            made = [next(encoded) for _ in own]
            whole = [side for side in made if not isinstance(side, BadRecord)]
            for side in made:
                if isinstance(side, BadRecord):
                    refused.setdefault(number, side)
            left_out = [entry for side in whole for entry in side.left_out]
            lengths.append(
                (
                    sum(max(len(piece.tokens) for piece in side.pieces) for side in whole),
                    sum(int(piece.targets.sum()) for side in whole for piece in side.pieces),
                    kinds_as_bits(left_out),
                )
            )
        return lengths, refused

    def _batch(
        self,
        task: Task,
        records: list[Record],
        sizes: list[int],
        lengths: list[tuple[int, int, int]],
        aside: list[bool],
        bad: list[Bad],
        breaches: list[tuple[int, str, str]],
    ) -> RecordBatch:
        train = not self._options.held_out
        rows = [
            (
                *(record.file, record.line, task.number, size),
                *(len(record.everything), len(record.text.split()), len(record.answer)),
                *(len(record.roles), *length[:2]),
                flags(record) if train else 0,
                *(length[2], out),
                -1 if record.rejected is None else len(record.rejected),
                -1 if record.verdict is None else int(record.verdict),
            )
            for record, size, length, out in zip(records, sizes, lengths, aside, strict=True)
        ]
        table = np.array(rows, np.int64).reshape(-1, len(COLUMNS))
        columns = {name: table[:, i].astype(kind) for i, (name, kind) in enumerate(COLUMNS.items())}
        hashes = [identity(record) for record in records]
        batch = RecordBatch(
            columns=columns,
            whole=_hashes([whole for whole, _, _ in hashes]).reshape(-1, 2),
            question=_hashes([question for _, question, _ in hashes]),
            reply=_hashes([reply for _, _, reply in hashes]),
            sides=_hashes([side for record in records for side in self._sides(record)]).reshape(
                -1, 3
            ),
            signatures=self._options.sketcher([record.text for record in records]),
            labels=[record.label for record in records],
            roles=Counter(role for record in records for role in record.roles),
            bad=sorted(bad, key=lambda found: found.line),
            breaches=breaches,
        )
        if not train:
            batch.pieces = [evaluated(record) for record in records]
        elif self._grams is not None and len(self._grams):
            batch.hits = self._find(records)
        return batch

    def _sides(self, record: Record) -> tuple[bytes, bytes, bytes]:
        """Hashes of what is judged in training, and of all that it might be found in."""
        is_judged = record.rejected is not None or record.verdict is not None
        return sides(record) if is_judged or self._options.held_out else _NO_SIDES

    def _find(self, records: Sequence[Record]) -> tuple[Array, Array]:
        assert self._grams is not None
        owners: list[int] = []
        texts: list[str] = []
        for number, record in enumerate(records):
            parts = [part for part in (record.prompt, record.answer, record.rejected) if part]
            texts += parts
            owners += [number] * len(parts)
        rows, grams = self._grams.find(texts)
        return np.array(owners, np.int64)[rows], np.asarray(grams, np.int64)


def record_of(task: Task, line: int, raw: Any, example: Example | None) -> Record:
    """A usable record; `example` None: all its texts."""
    file, source = task.input.file, task.input.group
    if example is None:
        return loose(raw, file=file, line=line, source=source)
    return make(example, file=file, line=line, source=source)


def _hashes(digests: list[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(digests), "<u8").astype(np.uint64)
