"""Tokenise once, before any rank exists: `python -m launcher.data.prepare RUN_DIR`.

Each split becomes a folder named by everything that decides its content, written beside its place
and renamed when complete. A lock makes a second process wait and then find the work done; it is the
kernel's, so a process that is killed leaves no lock, only a temporary folder whose whole segments
the next process takes up. Of a mixture every source has a folder of its own, and the mixture's
folder only says which they are, so other shares cost no tokenising.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from launcher import fingerprint
from launcher.config.derive import data_entries
from launcher.config.schema import Config, variants
from launcher.core import runtime
from launcher.core.files import open_lock, read_json, require_readable, storage_errors
from launcher.data.cache import INDEX, TokenCache, read_index
from launcher.data.pack.mixture import join
from launcher.data.prepare.parts import make
from launcher.data.prepare.split import say, summary
from launcher.data.sources import remote
from launcher.data.tokenizer import load_tokenizer
from launcher.fingerprint import LAYOUT_VERSION, Hashes, RemoteData

#: Temporary folders that nobody has taken up for so long are removed.
STALE_S = 14 * 24 * 3600


def prepare(config: Config, tokenizer: Any = None) -> dict[str, str | None]:
    """Split -> folder of the prepared splits, made where missing; None without a record.

    The tokenizer is loaded by the config unless given, and only if there is something to do. Raises
    `DataError` for data that cannot be trained on, `ConfigError` for a tokenizer that does not fit,
    `StorageError` when the cache cannot be written.
    """
    runtime.single_threaded_tokenizers()
    root = fingerprint.cache_root(config)
    with storage_errors(root):
        root.mkdir(parents=True, exist_ok=True)
    _remove_stale(root)
    fetch(config)
    hashes = Hashes(root / "hashes.json")
    parts = fingerprint.parts(config, hashes)
    for part in parts:
        folders = [(name, root / key) for name, key in part.keys.items()]
        with _lock(folders[0][1]):
            missing = [item for item in folders if not _usable(item[1], hashes)]
            if missing:
                tokenizer = tokenizer or load_tokenizer(config.model)
                make(config, part, folders, missing, tokenizer)
        for name, folder in folders:
            title = f"{name}, {part.item.name}" if part.mixed else name
            say(f"prepare: {summary(title, folder, packing=config.data.packing)}")
    found: dict[str, str | None] = {}
    for split, key in fingerprint.data_keys(config, hashes).items():
        mine = [part for part in parts if split in part.keys]
        if key is None:
            found[split] = None
            continue
        if mine[0].mixed:
            join(config, split, mine, root / key)
            say(f"prepare: {summary(split, root / key, packing=config.data.packing)}")
        found[split] = str(root / key) if read_index(root / key).records else None
    hashes.save()
    if found["train"]:
        held_out = TokenCache.open(found["validation"]) if found["validation"] else None
        objective = variants.objective(config.objective)
        objective.settle(config, TokenCache.open(found["train"]), held_out)
    return found


def fetch(config: Config) -> None:
    """Bring what the data's URLs name, unless it is there. Raises `DataError` where that fails."""
    for split in data_entries.splits(config):
        for source in fingerprint.locate(config, split):
            if not isinstance(source, RemoteData):
                continue
            with storage_errors(source.folder):
                source.folder.parent.mkdir(parents=True, exist_ok=True)
            with _lock(source.folder):
                # Another process may have brought it while this one waited.
                if source in fingerprint.locate(config, split):
                    say(f"prepare: fetching {source.url}")
                    remote.fetch(source)


def _usable(folder: Path, hashes: Hashes) -> bool:
    if fingerprint.complete_index(folder, hashes):
        return True
    if folder.exists():
        require_readable(folder)
        version = (read_json(folder / INDEX) or {}).get("version")
        older = isinstance(version, int) and version != LAYOUT_VERSION
        why = f"has layout {version}, not {LAYOUT_VERSION}" if older else "is damaged"
        say(f"prepare: warning: {folder} {why}; it is made again")
        with storage_errors(folder):
            shutil.rmtree(folder)
    return False


def _remove_stale(root: Path) -> None:
    """Remove temporary folders of preparations that nobody went on with."""
    for folder in root.glob(".*.tmp"):
        journal = folder / "journal.jsonl"
        with contextlib.suppress(OSError):
            changed = (journal if journal.exists() else folder).stat().st_mtime
            if folder.is_dir() and time.time() - changed > STALE_S:
                shutil.rmtree(folder)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a cache folder, waiting for whoever makes it."""
    path = folder.with_suffix(".lock")
    file = open_lock(path)
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
