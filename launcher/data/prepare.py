"""Tokenise once, before any rank exists: `python -m launcher.data.prepare RUN_DIR`.

Each split becomes a folder named by everything that decides its content, written beside its place
and renamed when complete. A lock makes a second process wait and then find the work done; it is the
kernel's, so a process that is killed leaves no lock, only a temporary folder that the next removes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from launcher import fingerprint, runtime
from launcher.config.schema import Config
from launcher.data import formats, sources
from launcher.data.cache import Index, read_index
from launcher.data.formats.base import BadRecord
from launcher.data.pool import work
from launcher.data.sources import Chunk
from launcher.data.split import SplitWriter, say, summary
from launcher.data.tokenizer import hide_torch, load_tokenizer
from launcher.data.worker import Options, Worker
from launcher.errors import ConfigError, DataError, ExitCode, LauncherError
from launcher.fingerprint import BuiltinData, Hashes, HubData, Source
from launcher.rundir import RunDir, fsync_folder, storage_errors, write_json

#: Seconds between lines of progress.
PROGRESS_S = 5.0
#: Records that vote on the format.
DETECT_RECORDS = 50


@dataclass(frozen=True, slots=True)
class _Pass:
    """One reading of the sources of `data.<split>`, into one folder, or two if a share is held
    out."""

    split: str
    folders: tuple[tuple[str, Path], ...]
    share: float = 0.0


def prepare(config: Config, tokenizer: Any = None) -> dict[str, str | None]:
    """{"train": folder, "validation": folder or None} of the prepared splits, made where missing.

    The tokenizer is loaded by the config unless given, and only if there is something to do. Raises
    `DataError` for data that cannot be trained on, `ConfigError` for a tokenizer that does not fit,
    `StorageError` when the cache cannot be written.
    """
    runtime.single_threaded_tokenizers()
    root = fingerprint.cache_root(config)
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    hashes = Hashes(root / "hashes.json")
    keys = fingerprint.data_keys(config, hashes)
    folders = [(name, root / key) for name, key in keys.items() if key]
    held_out = config.data.validation is None and len(folders) == 2
    passes = (
        [_Pass("train", tuple(folders), config.data.validation_share)]
        if held_out
        else [_Pass(name, ((name, folder),)) for name, folder in folders]
    )
    found: dict[str, str | None] = {"train": None, "validation": None}
    for task in passes:
        with _lock(task.folders[0][1]):
            missing = [item for item in task.folders if not _usable(item[1], hashes)]
            if missing:
                tokenizer = tokenizer or load_tokenizer(config.model)
                _make(config, task, missing, tokenizer)
        for name, folder in task.folders:
            say(f"prepare: {summary(name, folder, packing=config.data.packing)}")
            found[name] = str(folder) if read_index(folder).records else None
    hashes.save()
    return found


def _usable(folder: Path, hashes: Hashes) -> bool:
    if fingerprint.complete_index(folder, hashes):
        return True
    if folder.exists():
        say(f"prepare: warning: {folder} is damaged; it is made again")
        shutil.rmtree(folder)
    return False


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a cache folder, waiting for whoever makes it."""
    path = folder.with_suffix(".lock")
    with storage_errors(path):
        file = open(path, "w")  # noqa: SIM115 - closed below, after the yield
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            say("prepare: waiting for another process that prepares the same data")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        file.close()


def _make(config: Config, task: _Pass, missing: list[tuple[str, Path]], tokenizer: Any) -> None:
    """Read the sources once and put the missing folders in their places."""
    found = fingerprint.locate(config, task.split)
    files = [_name(source) for source in found]
    chunks = chain.from_iterable(sources.chunks(source, i) for i, source in enumerate(found))
    format_name, chunks = _format(config, files, chunks)
    index = Index(
        key="",
        files=files,
        format=format_name,
        tokenizer=str(tokenizer.name_or_path),
        max_length=config.data.max_length,
    )
    with contextlib.ExitStack() as stack:
        writers: list[SplitWriter | None] = []
        for name, folder in task.folders:
            if (name, folder) not in missing:
                writers.append(None)
                continue
            temporary = _temporary(folder)
            shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed
            writer = SplitWriter(
                name,
                temporary,
                files=files,
                limit=config.data.limit,
                bad_records=config.data.bad_records,
                expect_context=not config.objective.learns_every_token and format_name != "text",
                tokenizer=tokenizer,
            )
            stack.callback(shutil.rmtree, temporary, ignore_errors=True)
            stack.callback(writer.close)
            writers.append(writer)
        worker = Worker(tokenizer, _options(config, format_name, task.share))
        _read_all(worker, chunks, writers, files, config.data.workers or runtime.cpu_count())
        for (_, folder), finished in zip(task.folders, writers, strict=True):
            if finished:
                finished.finish(replace(index, key=folder.name))
                with storage_errors(folder):
                    os.replace(_temporary(folder), folder)
                    fsync_folder(folder.parent)


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.tmp")


def _read_all(
    worker: Worker,
    chunks: Iterator[Chunk],
    writers: list[SplitWriter | None],
    files: list[str],
    processes: int,
) -> None:
    """Run all chunks through the workers into the writers. Raises `DataError` for an empty file."""
    active = [writer for writer in writers if writer]
    records = dict.fromkeys(range(len(files)), 0)
    num_bytes, begun, said = 0, time.monotonic(), time.monotonic()
    results = work(worker, chunks, processes)
    with contextlib.closing(results):
        for chunk, batches in results:
            for writer, batch in zip(writers, batches, strict=True):
                records[chunk.file] += len(batch.fates)
                if writer:
                    writer.add(chunk.file, batch)
            num_bytes += chunk.num_bytes
            if time.monotonic() - said >= PROGRESS_S:
                said = time.monotonic()
                _progress(active, num_bytes, said - begun)
            if all(writer.full for writer in active):
                return
    empty = next((files[file] for file, number in records.items() if not number), None)
    if empty:
        raise DataError("there is no record in it", where=empty, hint="remove it from the data")


def _progress(writers: list[SplitWriter], num_bytes: int, seconds: float) -> None:
    read = sum(writer.counts.read for writer in writers)
    tokens = sum(writer.tokens for writer in writers)
    done = f", {num_bytes / 1e6:,.0f} MB" if num_bytes else ""
    say(f"prepare: {read:,} records, {tokens:,} tokens{done}, {tokens / seconds:,.0f} tokens/s")


def _format(config: Config, files: list[str], chunks: chain[Chunk]) -> tuple[str, chain[Chunk]]:
    """Name of the format, detected if need be, and the chunks including those looked at."""
    if config.data.format != "auto":
        return config.data.format, chunks
    first = list(islice(chunks, 1))
    parsed = [pair for chunk in first for pair in islice(chunk.parse(), DETECT_RECORDS)]
    usable = [record for _, record in parsed if not isinstance(record, BadRecord)]
    line, reason = parsed[0] if parsed else (1, BadRecord("there is no record in it"))
    if usable:
        try:
            return formats.detect(usable, config.data.columns), chain(first, chunks)
        except BadRecord as error:
            line = next(line for line, record in parsed if record is usable[0])
            reason = error
    file = files[first[0].file if first else 0]
    raise DataError(reason.found, where=f"{file}:{line}", hint=reason.hint)


def _options(config: Config, format_name: str, share: float) -> Options:
    data = config.data
    return Options(
        format=format_name,
        columns=data.columns,
        system=data.system,
        max_length=data.max_length,
        overlong=data.overlong,
        all_targets=config.objective.learns_every_token,
        share=share,
        seed=config.seed,
    )


def _name(source: Source) -> str:
    if isinstance(source, HubData):
        return ":".join(part for part in (source.name, source.subset) if part)
    if isinstance(source, BuiltinData):
        return f"builtin:{source.name}"
    return str(source)


def main(arguments: list[str]) -> int:
    """Prepare the data of a run folder and write its data.json. Returns the exit code."""
    hide_torch()
    try:
        if len(arguments) != 1:
            raise ConfigError("usage: python -m launcher.data.prepare RUN_DIR")
        run = RunDir(arguments[0]).require()
        from launcher.config import compose

        config = compose.load(run.config)
        fingerprint.require_same_data(run, config)
        write_json(run.data, prepare(config))
    except LauncherError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return ExitCode.interrupted
    return ExitCode.ok


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
