"""Digests of files by blocks, so that several threads and ranks can look at one file.

A manifest holds a file's digests as a list: BLAKE2b (32 bytes, hex) of each 64 MiB and of the rest.
Earlier ones hold one string: that of the whole file.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

BLOCK = 1 << 26
_READ = 1 << 22


class Digest:
    """Digests of what is written, block by block."""

    def __init__(self) -> None:
        self._blocks: list[str] = []
        self._last, self._room = _new(), BLOCK

    def update(self, content: bytes | memoryview) -> None:
        """Go on with `content`, of any length."""
        view = memoryview(content)
        while len(view):
            part, view = view[: self._room], view[self._room :]
            self._last.update(part)
            self._room -= len(part)
            if not self._room:
                self._blocks.append(self._last.hexdigest())
                self._last, self._room = _new(), BLOCK

    def blocks(self) -> list[str]:
        """Those of what has been given so far."""
        return [*self._blocks, self._last.hexdigest()] if self._room < BLOCK else self._blocks


def of(content: bytes) -> list[str]:
    """Digests of a file of this content."""
    digest = Digest()
    digest.update(content)
    return digest.blocks()


def of_block(path: Path, offset: int, size: int | None = None) -> str:
    """Digest of the `size` bytes from `offset` on (of all that follows); `OSError` if they cannot
    be read."""
    digest = _new()
    with open(path, "rb", buffering=0) as file:
        file.seek(offset)
        while size is None or size > 0:
            part = file.read(_READ if size is None else min(_READ, size))
            if not part:
                break
            digest.update(part)
            size = None if size is None else size - len(part)
    return digest.hexdigest()


def _new() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=32)
