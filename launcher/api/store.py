"""Where the bytes of files lie: by their SHA-256, in a folder or any file system of fsspec."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from typing import IO, Any

from launcher.errors import ConfigError, StorageError

_CHUNK = 1 << 20


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

    def write(self, pieces: Iterable[bytes]) -> tuple[str, int]:
        """Keep the content; returns its SHA-256 and size in bytes. `StorageError` if that fails."""
        digest, size = hashlib.sha256(), 0
        temporary = f"{self._root}/incoming/{secrets.token_hex(16)}"
        try:
            self._files.makedirs(f"{self._root}/incoming", exist_ok=True)
            with self._files.open(temporary, "wb") as out:
                for piece in pieces:
                    digest.update(piece)
                    size += len(piece)
                    out.write(piece)
            self._keep(temporary, digest.hexdigest())
        except OSError as error:
            raise StorageError(
                f"cannot be kept: {error}", where="files", hint="see the disk"
            ) from error
        finally:
            if self._files.exists(temporary):
                self._files.rm_file(temporary)
        return digest.hexdigest(), size

    def open(self, sha256: str) -> IO[bytes]:
        """The content, to be read from its beginning."""
        opened: Any = self._files.open(self._path(sha256), "rb")
        return opened  # type: ignore[no-any-return]

    def _keep(self, temporary: str, sha256: str) -> None:
        path = self._path(sha256)
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._files.mv(temporary, path)

    def _path(self, sha256: str) -> str:
        return f"{self._root}/sha256/{sha256[:2]}/{sha256}"
