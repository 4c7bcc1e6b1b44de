"""Content hashes of files, so that a second start need not read them again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from launcher.core import files


class Hashes:
    """Content hashes of files, remembered by path, size, modification time and inode."""

    #: A file this young may change again within the clock's resolution: not remembered.
    SETTLED_NS = 2_000_000_000

    def __init__(self, memo: Path) -> None:
        self._memo = memo
        raw = files.read_json(memo, {})
        self._known: dict[str, list[Any]] = raw if isinstance(raw, dict) else {}
        self._changed = False

    def digest(self, path: Path) -> str:
        """BLAKE2b (16 bytes, hex) of the file's content; `OSError` if it cannot be read."""
        name = str(path.resolve())
        stat = os.stat(name)
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        known = self._known.get(name)
        if known and known[:3] == state:
            return str(known[3])
        digest = file_digest(path)
        if stat.st_mtime_ns < time.time_ns() - self.SETTLED_NS:
            self._known[name] = [*state, digest]
            self._changed = True
        return digest

    def save(self) -> None:
        """Keep what was learned; a cache that cannot be written only costs time at the next
        start."""
        if self._changed:
            kept = {name: known for name, known in self._known.items() if os.path.exists(name)}
            with contextlib.suppress(Exception):
                files.write_atomic(self._memo, json.dumps(kept))


def file_digest(path: Path) -> str:
    """BLAKE2b (16 bytes, hex) of a file's content."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
