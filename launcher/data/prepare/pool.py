"""Worker processes for `prepare`: results in order, a bounded number of chunks under way."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import chain, islice
from multiprocessing.connection import wait

from launcher.core.errors import OutOfMemoryError
from launcher.data.prepare.worker import EncodedChunk, Worker
from launcher.data.sources import Chunk

#: With no more chunks than this, starting processes costs more than it gains.
INLINE_CHUNKS = 3
#: Chunks under way per process: enough that none waits for the reader.
AHEAD = 3


def work(
    worker: Worker, chunks: Iterator[Chunk], processes: int
) -> Generator[tuple[Chunk, list[EncodedChunk]], None, None]:
    """Each chunk with its batches, in the order of `chunks`.

    Memory is bounded by the chunks under way. Raises `OutOfMemoryError` when a process was killed.
    """
    first = list(islice(chunks, INLINE_CHUNKS + 1))
    if processes == 1 or len(first) <= INLINE_CHUNKS:
        for chunk in chain(first, chunks):
            yield chunk, worker(chunk)
        return
    # A fork shares the loaded tokenizer and starts at once, but is not safe beside torch's threads.
    method = "fork" if sys.platform == "linux" and not sys.modules.get("torch") else "spawn"
    pool = ProcessPoolExecutor(
        processes, multiprocessing.get_context(method), initializer=_begin, initargs=(worker,)
    )
    pending: deque[tuple[Chunk, Future[list[EncodedChunk]]]] = deque()
    try:
        for chunk in chain(first, chunks):
            pending.append((chunk, pool.submit(_run, chunk)))
            if len(pending) > AHEAD * processes:
                done, future = pending.popleft()
                yield done, future.result()
        while pending:
            done, future = pending.popleft()
            yield done, future.result()
    except BrokenProcessPool as error:
        raise OutOfMemoryError(
            "a process that tokenises was killed, most likely for want of memory",
            where="data.workers",
            hint="use fewer with data.workers=N, or give the job more host memory",
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_worker: Worker


def _begin(worker: Worker) -> None:
    global _worker
    _worker = worker
    gc.freeze()  # the libraries' objects stay: looking through them again and again takes a while
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this process when the parent is gone, however it died: nobody would read the results."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _run(chunk: Chunk) -> list[EncodedChunk]:
    return _worker(chunk)
