"""The first records of the data as preparation reads them: `python -m launcher.data.preview RUN`.

RUN is a folder with a config. What preparation would stop at is written to `preview.json` in it, so
that `launcher plan` can say so; neither tokenizer nor model is loaded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import astuple
from itertools import islice
from pathlib import Path

from launcher.config.compose import compose
from launcher.config.derive import items
from launcher.config.schema import Config, OnBadRecord, variants
from launcher.core.errors import ExitCode, LauncherError, Problem
from launcher.core.rundir import RunDir, write_json
from launcher.data import formats
from launcher.data.formats.base import BadRecord
from launcher.data.prepare.reading import DETECT_RECORDS, PartReader
from launcher.fingerprint import Part, located

#: Where the answer is, in the folder of the run.
FILE = "preview.json"


def problems(config: Config) -> Iterator[Problem]:
    """What is wrong with the first records of the first file of each entry of the data.

    Built-in data is right, and what is not here is left to whoever fetches it.
    """
    for split in items.splits(config):
        for item in items.items(config, split):
            try:
                source = next(located.find(config, item, split))
            except LauncherError:
                continue  # it is not here; whoever asks knows
            if not isinstance(source, Path):
                continue
            try:
                yield from _first(config, Part(split, item, (source,), {}, 0.0, mixed=False))
            except LauncherError as error:
                yield from error.problems


def _first(config: Config, part: Part) -> Iterator[Problem]:
    reading = PartReader(part, config)
    if config.data.bad_records is OnBadRecord.skip:
        return
    objective = variants.objective(config.objective)
    names = config.objective.label_names(list(config.data.labels))
    reader = formats.Reader(reading.format, part.item.columns, names)
    chunk = next(chunk for chunk in reading.chunks(None) or () if not chunk.is_blank)
    limit = min(DETECT_RECORDS, part.item.limit or DETECT_RECORDS)
    for line, raw in islice(chunk.parse(), limit):
        read = reader.read(raw)
        bad = read if isinstance(read, BadRecord) else objective.refusal(read[0])
        if bad:
            yield Problem(f"{reading.files[0]}:{line}", bad.found, bad.hint)
            return


def main(arguments: list[str]) -> int:
    """Write down what is wrong with the data of a run. Returns the exit code."""
    run = RunDir(arguments[0])
    found = problems(compose.load(run.config))
    write_json(run.path / FILE, [astuple(problem) for problem in found])
    return ExitCode.ok


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
