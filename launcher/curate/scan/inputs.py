"""What a report reads: training data, held-out data and benchmarks, as chunks with their format."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

from launcher.config.derive import data_entries
from launcher.config.schema import Config, DataConfig
from launcher.core.errors import DataError
from launcher.data import formats, sources
from launcher.data.formats.base import BadRecord
from launcher.data.prepare.preparation import fetch
from launcher.data.sources import Chunk, source_name
from launcher.data.tokenizer import load_tokenizer
from launcher.fingerprint import Source
from launcher.fingerprint.located import find

TRAIN, VALIDATION, BENCHMARK = "train", "validation", "benchmark"
#: Records of a file that vote on its format.
_VOTERS = 50


@dataclass(frozen=True, slots=True)
class Input:
    """One source of data: a file, a hub data set, a built-in one."""

    split: str
    group: str
    """What the config calls it; several files of a folder share it."""
    source: Source
    file: int
    """Index among all inputs."""
    name: str
    item: data_entries.DataEntry
    quota: str
    """What shares one `data.limit`: the source of a mixture, otherwise the split."""
    learns_all: bool = False
    """Whether the objective learns every token."""
    asks: bool = False
    """Whether its model answers, so that a question needs no answer."""


@dataclass(frozen=True, slots=True)
class Task:
    """A chunk, and how its records are read. `format` None: all texts of a record count."""

    chunk: Chunk
    number: int
    """Place among the chunks of its input."""
    input: Input
    format: str | None
    columns: Mapping[str, str] = field(default_factory=dict)
    problem: BadRecord | None = None
    """Why no format was found; then every record is bad for this reason."""


def inputs(config: Config) -> list[Input]:
    """All that is named, fetched where it is remote. Raises `DataError` for what is not there."""
    found: list[Input] = []
    for split, part in _splits(config):
        of = "train" if split == TRAIN else "validation"
        fetch(part)
        apart = data_entries.is_mixture(part, of)
        for item in data_entries.items(part, of):
            quota = f"{split} {item.name}" if apart else split
            for source in find(part, item, of):
                name = source_name(source)
                own = config.objective.learns_every_token, config.objective.samples
                entry = Input(split, item.name, source, len(found), name, item, quota, *own)
                found.append(entry)
    return found


def benchmark_data(data: DataConfig) -> DataConfig:
    """Benchmarks as a validation split; their layout is their own, whatever that of the training
    data is."""
    benchmarks = data.report.benchmarks
    return replace(data, validation=benchmarks, format="auto", columns={}, limit=None)


def _splits(config: Config) -> Iterator[tuple[str, Config]]:
    yield TRAIN, config
    if config.data.validation is not None:
        yield VALIDATION, config
    if config.data.report.benchmarks is not None:
        yield BENCHMARK, replace(config, data=benchmark_data(config.data))


def tasks(
    chosen: Sequence[Input],
    full: Collection[str] = (),
    numbers: Collection[tuple[int, int]] | None = None,
) -> Iterator[Task]:
    """The chunks of inputs; those whose quota is in `full`, which may grow meanwhile, are left out.

    With `numbers`, pairs of a file and a chunk of it, only these chunks come.
    """
    files = None if numbers is None else {file for file, _ in numbers}
    for entry in chosen:
        if entry.quota in full or (files is not None and entry.file not in files):
            continue
        begin = iter(sources.chunks(entry.source, entry.file))
        head = list(islice(begin, 1))
        format_name, problem = _format(entry, head)
        for number, chunk in enumerate(chain(head, begin)):
            if entry.quota in full:
                break
            if numbers is None or (entry.file, number) in numbers:
                yield Task(chunk, number, entry, format_name, entry.item.columns, problem)


def _format(entry: Input, head: Sequence[Chunk]) -> tuple[str | None, BadRecord | None]:
    if entry.item.format != "auto":
        return entry.item.format, None
    parsed = islice((record for chunk in head for _, record in chunk.parse()), _VOTERS)
    records = [record for record in parsed if not isinstance(record, BadRecord)]
    try:
        columns, learns_all = entry.item.columns, entry.learns_all
        return formats.detect(records, columns, learns_all=learns_all, asks=entry.asks), None
    except BadRecord as error:
        if entry.split == BENCHMARK:
            return None, None
        return None, error if records else None


class TaskReader:
    """Reads the records of tasks; one for each process."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = list(labels)
        self._readers: dict[int, formats.Reader] = {}

    def example(self, task: Task, raw: Any) -> Any:
        """The example of a raw record, a `BadRecord`, or None where all its texts count."""
        if isinstance(raw, BadRecord):
            return raw
        if task.problem:
            return task.problem
        if task.format is None:
            return None
        reader = self._readers.get(task.input.file)
        if reader is None:
            asks = task.input.asks
            reader = formats.Reader(task.format, task.columns, self._labels, asks=asks)
            self._readers[task.input.file] = reader
        read = reader.read(raw)
        if not isinstance(read, BadRecord):
            return read[0]
        # Of a benchmark all texts count where it is not what its first records look like.
        return None if task.input.split == BENCHMARK else read


def tokenizer_of(config: Config) -> Any:
    """The tokenizer that the config names; None if it names neither that nor a model."""
    model = config.model
    if model.kind == "hf" and not (model.tokenizer or model.name):
        return None
    return load_tokenizer(model)


def require_train(found: Sequence[Input]) -> None:
    """`DataError` without training data."""
    if not any(entry.split == TRAIN for entry in found):
        raise DataError("no training data is given", where="data.train", hint="data.train=PATH")
