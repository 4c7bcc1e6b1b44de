"""`python -m launcher.curate.clean RUN_DIR --out=OUT ...`: a cleaned copy of the training data.

The input is never written to. OUT appears whole or not at all: train.jsonl (or train/, a file for
each of several), dropped.jsonl and clean.json.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from launcher.config.compose import compose
from launcher.config.schema import Config
from launcher.core import runtime
from launcher.core.errors import ConfigError, ExitCode, LauncherError, StorageError
from launcher.core.rundir import RunDir, fsync_folder, write_json
from launcher.curate import choice
from launcher.curate.choice import DROPS, REDACTS, Dropped
from launcher.curate.inputs import TRAIN, Input, Reading, Task, tasks
from launcher.curate.inputs import inputs as find_inputs
from launcher.curate.item import Item
from launcher.curate.languages import Languages
from launcher.curate.marks import MARKS
from launcher.curate.naming import names_of, override, train_value
from launcher.curate.output import json_line, printable, require_writable, writing
from launcher.curate.personal import Trace
from launcher.curate.redaction import reason_shown, redact_record
from launcher.curate.report import tokenizer_of
from launcher.curate.rules import Facts, evaluate
from launcher.curate.scan import Scan, order, read_again, scan
from launcher.curate.texts import plural
from launcher.data.formats.base import BadRecord
from launcher.data.prepare.split import say
from launcher.data.tokenizer import hide_torch

_TOO_DEEP = "lists or objects nested too deep to be written again"


@dataclass(frozen=True, slots=True)
class Options:
    """What is done. `caps` are (field, most records of each value)."""

    drop: tuple[str, ...] = ()
    redact: frozenset[str] = frozenset()
    caps: tuple[tuple[str, int], ...] = ()
    temperature: float | None = None


def clean(config: Config, out: Path, options: Options) -> dict[str, Any]:
    """Write the copy; what clean.json says. Raises `ConfigError` for an OUT that would touch the
    input, `StorageError` if it cannot be written, and errors as `scan` raises them."""
    found = find_inputs(config)
    _require_apart(out, [entry for entry in found if entry.split == TRAIN])
    require_writable(out.parent)
    tokenizer = tokenizer_of(config) if "overlong" in options.drop else None
    facts = Facts.of(scan(config, tokenizer), Languages())
    gone = _choose(facts, options)
    # What cannot be parsed cannot be copied either, so it goes whether it was named or not.
    for entry in choice.broken(facts):
        gone.setdefault((entry.file, entry.line), entry)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with writing(out):
            temporary.mkdir(parents=True)
            told = _write(facts.scan, temporary, gone, options)
            if out.is_dir():
                out.rmdir()
            os.replace(temporary, out)
            fsync_folder(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return told


def _choose(facts: Facts, options: Options) -> dict[tuple[int, int], Dropped]:
    rules = [rule for rule in options.drop if rule != "broken"]
    rows = choice.drop(facts, evaluate(facts), rules)
    for field, most in options.caps:
        rows |= choice.cap(facts, _values(facts, choice.left(facts, rows), field), most)
    if options.temperature is not None:
        field = "label" if facts.scan.train.label_names else "source"
        told = choice.groups(facts, choice.left(facts, rows), field)
        if len(set(told.values())) < 2:
            hint = "it needs records with labels, or several sources in data.train"
            raise ConfigError("there is nothing to even out", where="--temperature", hint=hint)
        rows |= choice.even_out(facts, told, options.temperature)
    return {(entry.file, entry.line): entry for entry in rows.values()}


def _values(facts: Facts, rows: list[int], field: str) -> dict[int, str]:
    """The value that each record has in a field; records without it are not capped."""
    train = facts.scan.train
    if field == "source" or (field == "label" and train.label_names):
        return choice.groups(facts, rows, field)
    places = {(int(train["file"][row]), int(train["line"][row])): row for row in rows}
    found = {}
    for task, line, raw in _records(facts.scan):
        row = places.get((task.input.file, line))
        if row is not None and isinstance(raw, dict) and field in raw:
            found[row] = json.dumps(raw[field], sort_keys=True, default=str)
    if not found:
        raise ConfigError(
            f"no record has a field {field!r}",
            where="--cap",
            hint="give label, source, or a field of the records",
        )
    return found


def _records(found: Scan) -> Iterator[tuple[Task, int, Any]]:
    for task in tasks(order(found.inputs, found.share, train=True)):
        for line, raw in task.chunk.parse():
            yield task, line, raw


def _write(
    found: Scan, folder: Path, gone: dict[tuple[int, int], Dropped], options: Options
) -> dict[str, Any]:
    names = names_of([entry for entry in found.inputs if entry.split == TRAIN])
    counts: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    redacted: Counter[str] = Counter()
    scanned = _scanned(found)
    with ExitStack() as stack:
        files: dict[int, IO[bytes]] = {}
        for file, name in names.items():
            (folder / name).parent.mkdir(exist_ok=True)
            files[file] = stack.enter_context(open(folder / name, "wb"))
        log = stack.enter_context(open(folder / "dropped.jsonl", "wb"))
        reading = Reading(found.config.data.labels)
        for task, number, raw in _records(found):
            entry = task.input
            reason = gone.get((entry.file, number))
            if reason is not None:
                dropped[reason.rule] += 1
                why = reason.why or _mark(reason.rule, read_again(reading, task, number, raw))
                log.write(_dropped(entry, number, reason.rule, why))
            elif (entry.file, number) in scanned and not isinstance(raw, BadRecord):
                traces: list[Trace] = []
                try:
                    if options.redact:
                        raw = redact_record(raw, options.redact, traces)
                    written = json_line(raw)
                except RecursionError:
                    dropped["broken"] += 1
                    log.write(_dropped(entry, number, "broken", _TOO_DEEP))
                    continue
                redacted.update(trace.kind for trace in traces)
                files[entry.file].write(written)
                counts[names[entry.file]] += 1
        for stream in (*files.values(), log):
            stream.flush()
            os.fsync(stream.fileno())
    told = {
        "written": counts.total(),
        "dropped": dict(dropped.most_common()),
        "redacted": dict(redacted.most_common()),
        "files": {
            name: {"of": printable(found.inputs[file].name), "records": counts[name]}
            for file, name in names.items()
        },
        "drop": list(options.drop),
        "redact": sorted(options.redact),
        "caps": dict(options.caps),
        "temperature": options.temperature,
        "train": train_value(found, names, counts),
    }
    write_json(folder / "clean.json", told)
    return told


def _dropped(entry: Input, number: int, rule: str, why: str) -> bytes:
    return json_line({"where": f"{entry.name}:{number}", "rule": rule, "why": reason_shown(why)})


def _mark(rule: str, item: Item) -> str:
    mark = MARKS[rule](item)
    return mark[1].why if mark else ""


def _scanned(found: Scan) -> set[tuple[int, int]]:
    """(file, line) of the usable training records, the held-out ones included: `data.limit` leaves
    others."""
    return {
        place
        for table in (found.train, found.held.table)
        for place in zip(table["file"].tolist(), table["line"].tolist(), strict=True)
    }


def _require_apart(out: Path, train: Sequence[Input]) -> None:
    """`ConfigError` if OUT is, holds or lies in the input; `StorageError` if something is there."""
    target = out.resolve()
    for entry in train:
        given = runtime.user_path(entry.item.path)
        path = entry.source.resolve() if isinstance(entry.source, Path) else None
        inside = given.is_dir() and target.is_relative_to(given.resolve())
        if inside or (path is not None and path.is_relative_to(target)):
            raise ConfigError(
                f"{out} is, holds or lies in the input {entry.item.path}",
                where="--out",
                hint="give a folder elsewhere: the input is never changed",
            )
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise StorageError(
            "there is something already", where=str(out), hint="give a folder that is new or empty"
        )


def _caps(given: Sequence[str]) -> tuple[tuple[str, int], ...]:
    caps = []
    for text in given:
        field, _, number = text.rpartition("=")
        if not field or not number.isdecimal() or int(number) < 1:
            raise ConfigError(f"{text!r} is no cap", where="--cap", hint="write e.g. label=100")
        caps.append((field, int(number)))
    return tuple(caps)


def _options(given: argparse.Namespace) -> Options:
    if given.temperature is not None and not given.temperature > 0:
        hint = "1 changes nothing, larger values even out more, e.g. 2"
        raise ConfigError(
            f"{given.temperature} is no temperature", where="--temperature", hint=hint
        )
    return Options(
        drop=tuple(choice.rules_named(given.drop, DROPS, "--drop")),
        redact=frozenset(choice.rules_named(given.redact, REDACTS, "--redact")),
        caps=_caps(given.cap),
        temperature=given.temperature,
    )


def main(arguments: Sequence[str]) -> int:
    """Clean the data of a run folder's config. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="launcher data clean", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--drop", default="")
    parser.add_argument("--redact", default="")
    parser.add_argument("--cap", action="append", default=[])
    parser.add_argument("--temperature", type=float)
    given = parser.parse_args(arguments)
    hide_torch()
    try:
        config = compose.load(RunDir(given.run).require().config)
        told = clean(config, given.out, _options(given))
    except LauncherError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return ExitCode.interrupted
    for what in ("dropped", "redacted"):
        listed = ", ".join(f"{name} {count:,}" for name, count in told[what].items())
        print(f"{what}: {listed or 'nothing'}")
    given_now = printable(override(given.out, told["train"]))
    print(f"{plural(told['written'], 'record')}: {given_now}")
    return ExitCode.ok


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
