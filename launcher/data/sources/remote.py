"""Fetching URLs through fsspec into the cache, whole or not at all."""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from launcher.core.errors import ConfigError, DataError
from launcher.core.files import storage_errors, write_json
from launcher.data.sources.optional import optional
from launcher.fingerprint import RemoteData
from launcher.fingerprint.located import ABOUT, MANIFEST, SPLITS, STATE, is_data, saved_files

BLOCK_BYTES = 1 << 22
#: A transfer that breaks goes on where it stopped, so often.
TRIES = 4
PAUSE_S = 1.0


def fetch(source: RemoteData) -> None:
    """Bring all files of a URL. Raises `DataError` if one cannot be had whole."""
    fsspec = optional("fsspec", f"{source.url} is a URL")
    try:
        system, path = fsspec.core.url_to_fs(source.url)
        names = _names(system, path)
    except ImportError as error:
        raise ConfigError(
            f"this kind of URL needs another library: {error}",
            where=source.url,
            hint="install it beside the launcher, e.g. pip install s3fs (s3://), gcsfs (gs://)",
        ) from error
    except DataError:
        raise
    except Exception as error:  # every file system raises types of its own
        raise _failed(source.url, error) from error
    if not names:
        raise DataError(
            "no data files there", where=source.url, hint="check the URL, pattern and permissions"
        )
    with storage_errors(source.folder):
        source.folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, name in enumerate(names):
        target = source.folder / f"{number:05}-{PurePosixPath(name.partition('?')[0]).name}"
        url = name if "://" in name else str(system.unstrip_protocol(name))
        size = _download(system, name, target, url)
        files.append({"name": target.name, "url": url, "size": size})
    write_json(source.folder / MANIFEST, {"url": source.url, "files": files})


def _names(system: Any, path: str) -> list[str]:
    if any(character in path for character in "*[") and "http" not in system.protocol:
        return _data(system, system.glob(path))
    if "http" not in system.protocol and system.isdir(path):
        return _data(system, system.find(path))
    return [path]


def _data(system: Any, names: Iterable[str]) -> list[str]:
    """The data files among `names`, in order; of a `save_to_disk` folder those that it names.

    Raises `DataError` for a folder of several splits, of which one must be said.
    """
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for name in names:
        path = PurePosixPath(name)
        found[str(path.parent)][path.name] = name
    chosen: list[str] = []
    for folder, files in sorted(found.items()):
        if SPLITS in files:
            raise DataError(
                "a DatasetDict that save_to_disk wrote, of several splits",
                where=folder,
                hint="give the folder of one of its splits",
            )
        if STATE in files and ABOUT in files:
            state = json.loads(system.cat_file(files[STATE]))
            chosen += [files.get(name, f"{folder}/{name}") for name in saved_files(state, folder)]
        else:
            chosen += sorted(files[name] for name in files if is_data(name) and name != ABOUT)
    return chosen


def _download(system: Any, name: str, target: Path, url: str) -> int:
    """Number of bytes of the file, which lies at `target` when all of it is there."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with storage_errors(part), open(part, "wb") as out:
            for left in reversed(range(TRIES)):
                try:
                    for block in _blocks(system, name, out.tell()):
                        out.write(block)
                    break
                except Exception as error:
                    if isinstance(error, OSError) and error.filename == str(part):
                        raise
                    if not left or isinstance(error, FileNotFoundError | PermissionError):
                        raise _failed(url, error) from error
                    time.sleep(PAUSE_S)
            out.flush()
            os.fsync(out.fileno())
            size = out.tell()
        os.replace(part, target)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()
    return size


def _blocks(system: Any, name: str, begin: int) -> Iterator[bytes]:
    """The file from byte `begin` on; an end before its announced size is an error."""
    size = system.info(name).get("size")
    at = begin
    if size is None:  # a server that does not say: then it cannot be asked for a part either
        with system.open(name, "rb", block_size=0) as file:
            if begin:
                raise OSError("the transfer broke off, and the server cannot go on in the middle")
            while block := file.read(BLOCK_BYTES):
                yield block
        return
    while at < size:
        block = system.cat_file(name, start=at, end=min(size, at + BLOCK_BYTES))
        if not block:
            raise OSError(f"the file ends after {at:,} of {size:,} bytes")
        yield block
        at += len(block)
    if at != size:
        raise OSError(f"{at:,} bytes came of a file that has {size:,}")


def _failed(url: str, error: Exception) -> DataError:
    reason = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    return DataError(
        f"cannot be fetched: {type(error).__name__}: {reason[:300]}",
        where=url,
        hint="check the URL, the network and your credentials; nothing of it was kept",
    )
