"""Compressed files as streams that give no more than is asked for, and end where they should."""

from __future__ import annotations

import contextlib
import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from launcher.core.errors import DataError
from launcher.data.sources import limits
from launcher.data.sources.optional import optional

_SKIPPABLE = range(0x184D2A50, 0x184D2A60)
_MAGIC = 0xFD2FB528


@contextlib.contextmanager
def opened(path: Path, compression: str) -> Iterator[BinaryIO]:
    """The file's content, unpacked.

    Raises `DataError` where it is damaged or cut off, or unpacks to much more than data does.
    """
    if not compression:
        with open(path, "rb", buffering=0) as plain:
            yield cast(BinaryIO, plain)
        return
    with contextlib.ExitStack() as stack:
        try:
            inner = _gzip(path, stack) if compression == ".gz" else _zstd(path, stack)
            yield cast(BinaryIO, _Bounded(inner, path))
        except (gzip.BadGzipFile, zlib.error, EOFError) as error:
            raise _damaged(path, str(error)) from error
        except Exception as error:
            if type(error).__name__ != "ZstdError":
                raise
            raise _damaged(path, str(error)) from error


def _gzip(path: Path, stack: contextlib.ExitStack) -> BinaryIO:
    return stack.enter_context(gzip.open(path, "rb"))  # type: ignore[return-value]


def _zstd(path: Path, stack: contextlib.ExitStack) -> BinaryIO:
    zstandard = optional("zstandard", f"{path} is compressed by Zstandard")
    file = stack.enter_context(open(path, "rb"))  # noqa: SIM115 - the stack closes it
    _check_frames(file, zstandard)
    file.seek(0)
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
        file, read_across_frames=True
    )
    return stack.enter_context(reader)


def _check_frames(file: BinaryIO, zstandard: object) -> None:
    """Walk over the heads of all blocks: the library takes a file cut off inside a frame for one
    that ends there."""
    size = file.seek(0, io.SEEK_END)
    at = 0
    while at < size:
        file.seek(at)
        head = file.read(18)
        magic = int.from_bytes(head[:4], "little")
        if magic in _SKIPPABLE:
            at += 8 + int.from_bytes(head[4:8], "little")
            continue
        if magic != _MAGIC:
            raise EOFError(f"no Zstandard frame at byte {at:,}")
        at += zstandard.frame_header_size(head)  # type: ignore[attr-defined]
        has_checksum = zstandard.get_frame_parameters(head).has_checksum  # type: ignore[attr-defined]
        last = False
        while not last and at < size:
            file.seek(at)
            block = int.from_bytes(file.read(3), "little")
            last, kind = bool(block & 1), block >> 1 & 3
            at += 3 + (1 if kind == 1 else block >> 3)  # kind 1: one byte, repeated
        at += 4 * has_checksum
        if not last:
            break
    else:
        if at == size:
            return
    raise EOFError("the file ends in the middle of a frame")


class _Bounded(io.RawIOBase):
    """Passes on what an unpacking stream gives, until that is a bomb."""

    def __init__(self, inner: BinaryIO, path: Path) -> None:
        self._inner, self._path = inner, path
        self._left = max(limits.MIN_UNPACKED_BYTES, limits.MAX_RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._inner.read(len(buffer))
        self._left -= len(data)
        if self._left < 0:
            raise DataError(
                f"unpacks to more than {limits.MAX_RATIO} times its size",
                where=str(self._path),
                hint="is it a decompression bomb? If it is not, unpack it yourself and give that",
            )
        buffer[: len(data)] = data
        return len(data)


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"damaged or cut off: {reason}", where=str(path), hint="download or pack it again"
    )
