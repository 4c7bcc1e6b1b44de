"""Writes a cleaned copy of the training data.

The input is never written to. OUT appears whole or not at all: train.jsonl (or train/, a file for
each of several), dropped.jsonl and clean.json.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from launcher.config.schema import Config
from launcher.core import runtime
from launcher.core.errors import ConfigError, StorageError
from launcher.core.files import fsync_folder, write_json
from launcher.curate.clean import choice
from launcher.curate.clean.choice import Dropped
from launcher.curate.clean.naming import names_of, train_value
from launcher.curate.output import require_writable, writing
from launcher.curate.records.marks import MARKS
from launcher.curate.records.personal import PrivateSpan
from launcher.curate.records.record import Record
from launcher.curate.records.redaction import reason_shown, redact_record
from launcher.curate.rules.languages import Languages
from launcher.curate.rules.rules import Evidence, evaluate
from launcher.curate.scan.inputs import TRAIN, Input, Task, TaskReader, tasks, tokenizer_of
from launcher.curate.scan.inputs import inputs as find_inputs
from launcher.curate.scan.scan import Scan, order, read_again, scan
from launcher.data.formats.base import BadRecord

_TOO_DEEP = "lists or objects nested too deep to be written again"


@dataclass(frozen=True, slots=True)
class CleanOptions:
    """What is done. `caps` are (field, most records of each value)."""

    drop: tuple[str, ...] = ()
    redact: frozenset[str] = frozenset()
    caps: tuple[tuple[str, int], ...] = ()
    temperature: float | None = None


def clean(config: Config, out: Path, options: CleanOptions) -> dict[str, Any]:
    """Write the copy; what clean.json says. Raises `ConfigError` for an OUT that would touch the
    input, `StorageError` if it cannot be written, and errors as `scan` raises them."""
    found = find_inputs(config)
    _require_apart(out, [entry for entry in found if entry.split == TRAIN])
    require_writable(out.parent)
    tokenizer = tokenizer_of(config) if "overlong" in options.drop else None
    evidence = Evidence.of(scan(config, tokenizer), Languages())
    gone = _choose(evidence, options)
    # What cannot be parsed cannot be copied either, so it goes whether it was named or not.
    for entry in choice.broken(evidence):
        gone.setdefault((entry.file, entry.line), entry)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with writing(out):
            temporary.mkdir(parents=True)
            told = _write(evidence.scan, temporary, gone, options)
            if out.is_dir():
                out.rmdir()
            os.replace(temporary, out)
            fsync_folder(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return told


def _choose(evidence: Evidence, options: CleanOptions) -> dict[tuple[int, int], Dropped]:
    rules = [rule for rule in options.drop if rule != "broken"]
    rows = choice.drop(evidence, evaluate(evidence), rules)
    for field, most in options.caps:
        rows |= choice.cap(evidence, _values(evidence, choice.left(evidence, rows), field), most)
    if options.temperature is not None:
        field = "label" if evidence.scan.train.label_names else "source"
        told = choice.groups(evidence, choice.left(evidence, rows), field)
        if len(set(told.values())) < 2:
            hint = "it needs records with labels, or several sources in data.train"
            raise ConfigError("there is nothing to even out", where="--temperature", hint=hint)
        rows |= choice.even_out(evidence, told, options.temperature)
    return {(entry.file, entry.line): entry for entry in rows.values()}


def _values(evidence: Evidence, rows: list[int], field: str) -> dict[int, str]:
    """The value that each record has in a field; records without it are not capped."""
    train = evidence.scan.train
    if field == "source" or (field == "label" and train.label_names):
        return choice.groups(evidence, rows, field)
    places = {(int(train["file"][row]), int(train["line"][row])): row for row in rows}
    found = {}
    for task, line, raw in _records(evidence.scan):
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
    found: Scan, folder: Path, gone: dict[tuple[int, int], Dropped], options: CleanOptions
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
        reading = TaskReader(found.config.data.labels)
        for task, number, raw in _records(found):
            entry = task.input
            reason = gone.get((entry.file, number))
            if reason is not None:
                dropped[reason.rule] += 1
                why = reason.why or _mark(reason.rule, read_again(reading, task, number, raw))
                log.write(_dropped(entry, number, reason.rule, why))
            elif (entry.file, number) in scanned and not isinstance(raw, BadRecord):
                spans: list[PrivateSpan] = []
                try:
                    if options.redact:
                        raw = redact_record(raw, options.redact, spans)
                    written = json_line(raw)
                except RecursionError:
                    dropped["broken"] += 1
                    log.write(_dropped(entry, number, "broken", _TOO_DEEP))
                    continue
                redacted.update(span.kind for span in spans)
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


def _mark(rule: str, record: Record) -> str:
    mark = MARKS[rule](record)
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


def printable(text: str) -> str:
    """The text with what has no UTF-8, as in names of files, spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


def json_line(value: Any) -> bytes:
    """A record as a line of JSON: NaN and bytes that are no text become null."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=_text, allow_nan=False)
    except ValueError:  # NaN and infinities are no JSON
        text = json.dumps(_finite(value), ensure_ascii=False, default=_text)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half of a pair of surrogates has no UTF-8, but an escape
        return json.dumps(json.loads(text)).encode() + b"\n"


def _text(value: Any) -> str | None:
    """What JSON has no type for, such as a date, as a text; null for bytes that are none."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
