"""The first records of the data as preparation reads them: `python -m launcher.data.preview RUN`.

RUN is a folder with a config. What preparation would stop at is written to `preview.json` in it, so
that `launcher plan` can say so; neither tokenizer nor model is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import astuple
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from launcher.config.compose import compose
from launcher.config.derive import data_entries
from launcher.config.derive.data_entries import DataEntry
from launcher.config.schema import Config, OnBadRecord, Overlong, variants
from launcher.core.errors import DataError, ExitCode, LauncherError, Problem
from launcher.core.files import write_json
from launcher.core.rundir import RunDir
from launcher.data import formats
from launcher.data.formats.answers import question_of
from launcher.data.formats.base import BadRecord, Example
from launcher.data.formats.learned import examples_for
from launcher.data.prepare.reading import DETECT_RECORDS, PartReader
from launcher.data.prepare.worker import is_held_out
from launcher.fingerprint import Part, located

#: Where the answer is, in the folder of the run.
FILE = "preview.json"
#: Files up to so many bytes together are read whole where an objective asks for it: a second.
WHOLE_BYTES = 32 << 20


def problems(config: Config) -> Iterator[tuple[Problem, ExitCode]]:
    """What is wrong with the first records of the first file of each entry of the data, or with all
    records for the objective, and how preparation would end.

    Built-in data is right, and what is not here is left to whoever fetches it.
    """
    is_fine = True
    for split in data_entries.splits(config):
        for item in data_entries.items(config, split):
            source = next(iter(_files(config, item, split)), None)
            if source is None:
                continue
            try:
                found = list(_first(config, Part(split, item, (source,), {}, 0.0, mixed=False)))
            except LauncherError as error:
                found = list(error.problems)
            is_fine = is_fine and not found
            yield from ((problem, ExitCode.data) for problem in found)
    if is_fine and _can_be_read_whole(config):
        objective = variants.objective(config.objective)
        try:
            objective.foresee(config, partial(_records, config))
        except LauncherError as error:
            yield from ((problem, error.exit_code) for problem in error.problems)


def _files(config: Config, item: DataEntry, split: str) -> list[Path]:
    """The files of an entry; [] if some are elsewhere, or not there, as whoever asks knows."""
    try:
        sources = list(located.find(config, item, split))
    except LauncherError:
        return []
    files = [source for source in sources if isinstance(source, Path)]
    return files if len(files) == len(sources) else []


def _can_be_read_whole(config: Config) -> bool:
    """Whether all records are here, are few, and are what preparation will make of them: no record
    is skipped or dropped."""
    drops = (Overlong.drop, Overlong.cut_prompt)
    if config.data.bad_records is OnBadRecord.skip or config.data.overlong in drops:
        return False
    files: list[Path] = []
    for split in _held(config):
        entries = data_entries.items(config, split)
        found = [_files(config, entry, split) for entry in entries]
        joined = len(entries) > 1 and not data_entries.is_mixture(config, split)
        if not all(found) or (joined and config.data.limit is not None):
            return False
        files += [file for own in found for file in own]
    return sum(file.stat().st_size for file in files) <= WHOLE_BYTES


def _held(config: Config) -> list[str]:
    return [split for split in data_entries.splits(config) if split in ("train", "validation")]


def _records(config: Config, split: str) -> Iterator[tuple[str, Example]]:
    """All records of train or validation, as preparation shares them out."""
    data, named = config.data, split if split in _held(config) else "train"
    share = data.validation_share if data.validation is None else 0.0
    if split != named and not share:
        return
    objective = variants.objective(config.objective)
    for item in data_entries.items(config, named):
        files = tuple(_files(config, item, named))
        reading = PartReader(Part(named, item, files, {}, share, mixed=False), config)
        names = config.objective.label_names(list(data.labels))
        reader = formats.Reader(reading.format, item.columns, names, asks=config.objective.samples)
        lines = (
            (f"{reading.files[chunk.file]}:{line}", raw)
            for chunk in reading.chunks(None) or ()
            for line, raw in chunk.parse()
            if not share
            or is_held_out(question_of(raw, reading.format, item.columns), share, config.seed)
            == (split == "validation")
        )
        for place, raw in islice(lines, item.limit):
            read = reader.read(raw)
            bad = read if isinstance(read, BadRecord) else _refusal(objective, read[0])
            if bad:
                raise DataError(bad.found, where=place, hint=bad.hint)
            assert not isinstance(read, BadRecord)
            if read[1]:  # one without weight is dropped
                yield place, read[0]


def _refusal(objective: Any, example: Example) -> BadRecord | None:
    for taken in examples_for(example, objective.options):
        if refused := objective.refusal(taken):
            found: BadRecord = refused
            return found
    return None


def _first(config: Config, part: Part) -> Iterator[Problem]:
    reading = PartReader(part, config)
    if config.data.bad_records is OnBadRecord.skip:
        return
    objective = variants.objective(config.objective)
    names = config.objective.label_names(list(config.data.labels))
    reader = formats.Reader(reading.format, part.item.columns, names, asks=config.objective.samples)
    chunk = next(chunk for chunk in reading.chunks(None) or () if not chunk.is_blank)
    limit = min(DETECT_RECORDS, part.item.limit or DETECT_RECORDS)
    for line, raw in islice(chunk.parse(), limit):
        read = reader.read(raw)
        bad = read if isinstance(read, BadRecord) else _refusal(objective, read[0])
        if bad:
            yield Problem(f"{reading.files[0]}:{line}", bad.found, bad.hint)
            return


def main(arguments: list[str]) -> int:
    """Write down what is wrong with the data of a run. Returns the exit code."""
    run = RunDir(arguments[0])
    found = problems(compose.load(run.config))
    write_json(run.path / FILE, [[int(code), *astuple(problem)] for problem, code in found])
    return ExitCode.ok


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
