"""One parallel reading of all data, into columns of numbers; texts are fetched again when shown."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from launcher.config.schema import Config
from launcher.core import runtime
from launcher.curate.records.record import Record
from launcher.curate.records.sketch import Sketcher
from launcher.curate.scan.grams import Grams, Held
from launcher.curate.scan.inputs import TRAIN, VALIDATION, Input, Task, TaskReader, inputs, tasks
from launcher.curate.scan.scanner import Scanner, ScanOptions, record_of
from launcher.curate.scan.table import COLUMNS, Array, RecordBatch, RecordTable
from launcher.data.chat.masking import ChatOptions
from launcher.data.prepare.pool import work
from launcher.data.sources.chunk import Chunk, Parsed, parse_line

#: Seconds between lines of progress.
PROGRESS_S = 5.0
_PLACE = ("file", "chunk", "line")


@dataclass(slots=True)
class Scan:
    """All that a report is made from."""

    config: Config
    inputs: list[Input]
    train: RecordTable
    held: Held
    tokenizer: str | None
    profile: str | None
    share: float
    """Share of the training data that is held out."""

    def where(self, table: RecordTable, row: int) -> str:
        """file:line of a record."""
        return f"{self.inputs[table['file'][row]].name}:{table['line'][row]}"

    def fetch(self, rows: Iterable[int], table: RecordTable | None = None) -> dict[int, Record]:
        """Records of rows of a table (default: training), read again."""
        return dict(self.stream(rows, table))

    def stream(
        self, rows: Iterable[int], table: RecordTable | None = None
    ) -> Iterator[tuple[int, Record]]:
        """Rows and their records one by one, in the order of the table: all of them may be many."""
        table = table or self.train
        wanted = sorted(set(map(int, rows)))
        places: dict[tuple[int, int], dict[int, int]] = {}
        for row in wanted:
            file, chunk, line = (int(table[name][row]) for name in _PLACE)
            places.setdefault((file, chunk), {})[line] = row
        chosen = order(self.inputs, self.share, train=table is self.train)
        reading = TaskReader(self.config.data.labels)
        for task in tasks(chosen, numbers=places.keys()) if places else ():
            lines = places[task.input.file, task.number]
            for line, raw in _chosen(task.chunk, lines):
                yield lines[line], read_again(reading, task, line, raw)


def _chosen(chunk: Chunk, lines: Container[int]) -> Iterator[Parsed]:
    """The records of a chunk that are on these lines; others are not even parsed."""
    if not chunk.lines:
        yield from (parsed for parsed in chunk.parse() if parsed[0] in lines)
        return
    for number, line in enumerate(chunk.lines.split(b"\n"), chunk.first_line):
        if number in lines:
            yield number, parse_line(line)


def read_again(reading: TaskReader, task: Task, line: int, raw: Any) -> Record:
    """A raw record that was usable when it was scanned."""
    return record_of(task, line, raw, reading.example(task, raw))


def scan(config: Config, tokenizer: Any = None, profile: str | None = None) -> Scan:
    """Read everything. Raises `DataError` for data that is not there or cannot be read at all."""
    runtime.single_threaded_tokenizers()
    found = inputs(config)
    data = config.data
    # A service is given the whole file: its rules are for all records.
    share = data.validation_share if data.validation is None and not profile else 0.0
    options = ScanOptions(tuple(data.labels), Sketcher(), share, config.seed, held_out=True)
    held = _held(config, found, options)
    learns_all = config.objective.learns_every_token
    options = replace(options, held_out=False, profile=profile, all_targets=learns_all)
    scanner = Scanner(options, tokenizer, ChatOptions.of(data), held.grams)
    train = _table(config, scanner, order(found, share, train=True), "train")
    name = str(tokenizer.name_or_path) if tokenizer else None
    return Scan(config, found, train, held, name, profile, share)


def order(found: Sequence[Input], share: float, *, train: bool) -> list[Input]:
    """Inputs that a reading of one side goes through, in its order."""
    if train:
        return [entry for entry in found if entry.split == TRAIN]
    held_out = [entry for entry in found if share and entry.split == TRAIN]
    return [*held_out, *(entry for entry in found if entry.split != TRAIN)]


def _held(config: Config, found: list[Input], options: ScanOptions) -> Held:
    scanner = Scanner(options, None, None, None)
    pieces: list[str] = []
    owners: list[int] = []
    count = 0

    def keep(batch: RecordBatch) -> None:
        nonlocal count
        for number, texts in enumerate(batch.pieces, count):
            pieces.extend(texts)
            owners.extend([number] * len(texts))
        count += len(batch.pieces)

    table = _table(config, scanner, order(found, options.share, train=False), VALIDATION, keep)
    grams = Grams.build(pieces, n=config.data.report.leak_ngram)
    return Held(table, grams, np.array(owners, np.int32))


def _table(
    config: Config, scanner: Scanner, chosen: Sequence[Input], what: str, keep: Any = None
) -> RecordTable:
    full: set[str] = set()
    limits = _Limits(full)
    batches: list[RecordBatch] = []
    offset, hit_rows, hit_grams = 0, list[Array](), list[Array]()
    breaches: list[tuple[int, int, str, str]] = []
    names: dict[str, int] = {}
    labels: list[int] = []
    formats: dict[int, str] = {}
    num_bytes, said = 0, time.monotonic()
    processes = config.data.workers or runtime.cpu_count()
    results = work(cast(Any, scanner), cast(Any, tasks(chosen, full)), processes)
    with closing(results):
        for task, batch in cast(Iterator[tuple[Task, RecordBatch]], results):
            if task.input.quota in full:
                continue
            batch = limits.cut(task, batch)
            num_bytes += task.chunk.num_bytes
            formats[task.input.file] = task.format or "other"
            if keep:
                keep(batch)
            for label in batch.labels:
                labels.append(-1 if label is None else names.setdefault(label, len(names)))
            hit_rows.append(batch.hits[0] + offset)
            hit_grams.append(batch.hits[1])
            breaches += [(task.input.file, line, rule, why) for line, rule, why in batch.breaches]
            batch.labels, batch.pieces, batch.breaches = [], [], []
            offset += len(batch.whole)
            batches.append(batch)
            if time.monotonic() - said > PROGRESS_S:
                said = time.monotonic()
                print(f"report: {what}: {offset:,} records", file=sys.stderr, flush=True)
    return RecordTable(
        columns={
            name: _joined([batch.columns[name] for batch in batches], (0,), kind)
            for name, kind in COLUMNS.items()
        },
        whole=_joined([batch.whole for batch in batches], (0, 2), np.uint64),
        question=_joined([batch.question for batch in batches], (0,), np.uint64),
        reply=_joined([batch.reply for batch in batches], (0,), np.uint64),
        sides=_joined([batch.sides for batch in batches], (0, 3), np.uint64),
        signatures=_joined([batch.signatures for batch in batches], (0, 128), np.uint32),
        label_names=list(names),
        labels=np.array(labels, np.int32),
        bad=[bad for batch in batches for bad in batch.bad],
        roles=sum((batch.roles for batch in batches), Counter()),
        num_bytes=num_bytes,
        breaches=breaches,
        hits=(_joined(hit_rows, (0,), np.int64), _joined(hit_grams, (0,), np.int64)),
        formats=formats,
    )


class _Limits:
    """`data.limit`: the first records of a source of a mixture, otherwise of the whole split."""

    def __init__(self, full: set[str]) -> None:
        self._full = full
        self._read: Counter[str] = Counter()

    def cut(self, task: Task, batch: RecordBatch) -> RecordBatch:
        """The batch within the limit; when it is reached, the quota joins the full ones."""
        limit = task.input.item.limit
        if limit is None:
            return batch
        key = task.input.quota
        mine = batch.columns["line"][batch.columns["aside"] == 0]
        lines = sorted([*mine.tolist(), *(bad.line for bad in batch.bad)])
        left = limit - self._read[key]
        self._read[key] += len(lines)
        if len(lines) < left:
            return batch
        self._full.add(key)
        last = lines[left - 1] if left > 0 else -1
        kept = batch.columns["line"] <= last
        rows = int(kept.sum())
        return RecordBatch(
            columns={name: column[:rows] for name, column in batch.columns.items()},
            whole=batch.whole[:rows],
            question=batch.question[:rows],
            reply=batch.reply[:rows],
            sides=batch.sides[:rows],
            signatures=batch.signatures[:rows],
            labels=batch.labels[:rows],
            roles=batch.roles,
            bad=[bad for bad in batch.bad if bad.line <= last],
            hits=tuple(part[batch.hits[0] < rows] for part in batch.hits),  # type: ignore[arg-type]
            breaches=[breach for breach in batch.breaches if breach[0] <= last],
            pieces=batch.pieces[:rows],
        )


def _joined(parts: list[Array], shape: tuple[int, ...], kind: Any) -> Array:
    return np.concatenate(parts) if parts else np.zeros(shape, kind)
