"""Where the bytes of files lie: by their SHA-256, in a folder or any file system of fsspec."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from typing import IO, Any

from launcher.core.errors import ConfigError, StorageError

_HINT = "see the disk or the bucket"


class Incoming:
    """Content that is being written; it is kept by `Store.keep`, or else goes."""

    def __init__(self, out: Any, path: str, sync: bool) -> None:
        self._out, self._sync = out, sync
        self._digest = hashlib.sha256()
        self.path = path
        self.bytes = 0

    def write(self, piece: bytes) -> None:
        """Add to it. `StorageError` if there is no room."""
        self._digest.update(piece)
        self.bytes += len(piece)
        with _told("cannot be kept"):
            self._out.write(piece)

    def finish(self) -> None:
        """Nothing is added any more; it is on the disk."""
        with _told("cannot be kept"):
            if self._sync and not self._out.closed:
                self._out.flush()
                os.fsync(self._out.fileno())
            self._out.close()

    @property
    def sha256(self) -> str:
        """Hash of what has been written."""
        return self._digest.hexdigest()


class Store:
    """Content by hash. What is being written is not there before it is whole."""

    def __init__(self, url: str) -> None:
        """`url`: a folder, or s3://bucket/path and the like; `ConfigError` if it cannot be used."""
        import fsspec

        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            hint = "a folder, or a URL whose file system is installed, e.g. pip install s3fs"
            raise ConfigError(f"no store: {error}", where="files", hint=hint) from error
        self._root: str = root.rstrip("/")
        self._is_local = "file" in _protocols(self._files)

    @contextlib.contextmanager
    def incoming(self) -> Iterator[Incoming]:
        """New content. Unless it is kept, it is gone at the end. `StorageError` if that fails."""
        path = f"{self._root}/incoming/{secrets.token_hex(16)}"
        with _told("cannot be kept"):
            self._files.makedirs(f"{self._root}/incoming", exist_ok=True)
            out = self._files.open(path, "wb")
        try:
            yield Incoming(out, path, self._is_local)
        finally:
            with contextlib.suppress(OSError):
                out.close()
            with contextlib.suppress(OSError):
                self._files.rm_file(path)

    def prepare(self, content: Incoming) -> None:
        """What takes long of `keep`, for before the transaction in which that happens.

        In a folder nothing does. A bucket knows no move: what it has then is a copy.
        """
        content.finish()
        path = self._path(content.sha256)
        with _told("cannot be kept"):
            if not self._is_local and not self._has(path, content.bytes):
                self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
                self._files.cp_file(content.path, path)

    def keep(self, content: Incoming) -> None:
        """Put what has been written where its hash says; it can be opened from now on."""
        content.finish()
        path = self._path(content.sha256)
        with _told("cannot be kept"):
            if not self._is_local and self._has(path, content.bytes):
                return
            self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
            self._files.mv(content.path, path)

    def read(self, content: Incoming) -> IO[bytes]:
        """What has been written but is not kept yet, from its beginning."""
        content.finish()
        with _told("cannot be read"):
            opened: Any = self._files.open(content.path, "rb")
        return opened  # type: ignore[no-any-return]

    def open(self, sha256: str) -> IO[bytes]:
        """The content, to be read from its beginning; `StorageError` if it is not there."""
        with _told("cannot be read"):
            opened: Any = self._files.open(self._path(sha256), "rb")
        return opened  # type: ignore[no-any-return]

    def delete(self, sha256: str) -> None:
        """Let go of the content, which may be gone already."""
        with _told("cannot be deleted"), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(sha256))

    def hashes(self, older_than_s: float) -> list[str]:
        """All content kept at least so long ago."""
        return [path.rpartition("/")[2] for path in self._older("sha256", older_than_s)]

    def sweep(self, older_than_s: float) -> int:
        """Remove what was never finished, because its process died; returns how many."""
        left = self._older("incoming", older_than_s)
        for path in left:
            with contextlib.suppress(OSError):
                self._files.rm_file(path)
        return len(left)

    def check(self) -> None:
        """`StorageError` unless it can be written to."""
        with self.incoming() as probe:
            probe.write(b"?")
            probe.finish()

    def _has(self, path: str, size: int) -> bool:
        self._files.invalidate_cache(path)  # another server may have deleted it
        try:
            return bool(self._files.info(path)["size"] == size)
        except FileNotFoundError:
            return False

    def _older(self, folder: str, than_s: float) -> list[str]:
        found = []
        with _told("cannot be listed"), contextlib.suppress(FileNotFoundError):
            # Names, then times: content may go in between.
            for path in self._files.find(f"{self._root}/{folder}"):
                with contextlib.suppress(FileNotFoundError):
                    if self._files.modified(path).timestamp() <= time.time() - than_s:
                        found.append(path)
        return found

    def _path(self, sha256: str) -> str:
        return f"{self._root}/sha256/{sha256[:2]}/{sha256}"


def _protocols(files: Any) -> tuple[str, ...]:
    found = files.protocol
    return (found,) if isinstance(found, str) else tuple(found)


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {error}", where="files", hint=_HINT) from error
