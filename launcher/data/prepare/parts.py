"""One part of the data from its sources to the folders of its splits, resumed where it stopped."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.config.schema import Config, variants
from launcher.config.schema.conversion import to_dict
from launcher.core import runtime
from launcher.core.errors import ConfigError, DataError
from launcher.core.files import fsync_folder, storage_errors
from launcher.data.cache import Index
from launcher.data.chat.masking import ChatOptions
from launcher.data.prepare.pool import work
from launcher.data.prepare.reading import Cursor, PartReader, first_of
from launcher.data.prepare.split import SplitWriter, say
from launcher.data.prepare.worker import EncodingOptions, Worker
from launcher.data.sources import limits
from launcher.data.sources.chunk import Chunk
from launcher.fingerprint import LAYOUT_VERSION, Part

#: Seconds between lines of progress.
PROGRESS_S = 5.0

Folders = list[tuple[str, Path]]


def make(config: Config, part: Part, folders: Folders, missing: Folders, tokenizer: Any) -> None:
    """Read the sources once and put the `missing` of `folders` in their places.

    Raises `DataError` for data that cannot be trained on; after any other error, and after a kill,
    a later call goes on from the last whole segment.
    """
    reading = PartReader(part, config)
    objective = variants.objective(config.objective)
    index = Index(
        key="",
        files=reading.files,
        format=reading.format,
        tokenizer=str(tokenizer.name_or_path),
        max_length=config.data.max_length,
        turn_ends=objective.turn_ends(reading.format, tokenizer),
        documents=list(objective.documents),
    )
    with contextlib.ExitStack() as stack:
        writers: list[SplitWriter | None] = []
        for name, folder in folders:
            if (name, folder) not in missing:
                writers.append(None)
                continue
            writer = SplitWriter(
                name,
                _temporary(folder),
                files=reading.files,
                limit=part.item.limit,
                bad_records=config.data.bad_records,
                expect_context=objective.expects_context and reading.format != "text",
                expect_end=not config.objective.has_sequence_head,
                max_length=config.data.max_length,
                overlong=config.data.overlong,
                tokenizer=tokenizer,
                stamp=_stamp(folder.name),
                columns=objective.columns,
                grouped=config.objective.groups_documents,
            )
            stack.callback(writer.close)
            writers.append(writer)
        try:
            worker = Worker(tokenizer, _options(config, part, reading.format))
            _read_all(worker, reading, writers, config.data.workers or runtime.cpu_count())
            for (_, folder), finished in zip(folders, writers, strict=True):
                if finished:
                    finished.finish(replace(index, key=folder.name))
                    with storage_errors(folder):
                        os.replace(_temporary(folder), folder)
                        fsync_folder(folder.parent)
        except (DataError, ConfigError):
            # What mends this changes the name of the folder: nothing would go on from here.
            for _, folder in missing:
                shutil.rmtree(_temporary(folder), ignore_errors=True)
            raise


def _temporary(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.tmp")


def _stamp(key: str) -> Any:
    """What must be as it was for another process to go on with a temporary folder."""
    return {
        "key": key,
        "layout": LAYOUT_VERSION,
        "chunks": [limits.CHUNK_BYTES, limits.CHUNK_RECORDS],
        "python": list(sys.version_info[:2]),  # its decompressor decides where chunks end
    }


def _read_all(
    worker: Worker, reading: PartReader, writers: list[SplitWriter | None], processes: int
) -> None:
    """Run all chunks through the workers into the writers, from where another process left off."""
    active = [writer for writer in writers if writer]
    cursor, chunks = _take_up(active, reading)
    file, done, _ = cursor or [0, 0, 0]
    num_bytes, begun, said = 0, time.monotonic(), time.monotonic()
    tokens_before = sum(writer.tokens for writer in active)
    if all(writer.full for writer in active):
        return
    results = work(worker, chunks, processes)
    with contextlib.closing(results):
        for chunk, batches in results:
            for writer, batch in zip(writers, batches, strict=True):
                if writer:
                    writer.add(chunk.file, batch)
            file, done = chunk.file, done + 1 if chunk.file == file else 1
            if any(writer.is_due for writer in active):
                for writer in active:
                    writer.commit([file, done, first_of(chunk)])
            num_bytes += chunk.num_bytes
            if time.monotonic() - said >= PROGRESS_S:
                said = time.monotonic()
                _progress(active, num_bytes, tokens_before, said - begun)
            if all(writer.full for writer in active):
                return


def _take_up(
    active: list[SplitWriter], reading: PartReader
) -> tuple[Cursor | None, Iterator[Chunk]]:
    """Where to go on and the chunks from there: behind the last segment that all writers have."""
    common = 0
    for cursors in zip(*(writer.cursors for writer in active), strict=False):
        if any(cursor != cursors[0] for cursor in cursors):
            break
        common += 1
    cursor = active[0].cursors[common - 1] if common else None
    chunks = reading.chunks(cursor)
    if chunks is None:
        common, cursor, chunks = 0, None, reading.chunks(None)
    assert chunks is not None
    for writer in active:
        writer.resume(common)
    if cursor:
        read = sum(writer.counts.read for writer in active)
        say(f"prepare: going on after {read:,} records that an earlier process has prepared")
    return cursor, chunks


def _progress(
    writers: list[SplitWriter], num_bytes: int, tokens_before: int, seconds: float
) -> None:
    read = sum(writer.counts.read for writer in writers)
    tokens = sum(writer.tokens for writer in writers)
    done = f", {num_bytes / 1e6:,.0f} MB" if num_bytes else ""
    rate = (tokens - tokens_before) / seconds
    say(f"prepare: {read:,} records, {tokens:,} tokens{done}, {rate:,.0f} tokens/s")


def _options(config: Config, part: Part, format_name: str) -> EncodingOptions:
    data, own = config.data, config.objective
    return EncodingOptions(
        format=format_name,
        columns=part.item.columns,
        labels=data.labels,
        chat=ChatOptions.of(data),
        max_length=data.max_length,
        overlong=data.overlong,
        ranked=data.ranked,
        objective=to_dict(own),
        share=part.share,
        seed=config.seed,
        learns=part.split == "train",
    )
