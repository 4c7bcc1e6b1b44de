"""What a folder can do: room, latency of small durable writes, atomic rename, locks.

Each measurement works in a folder of its own, which is gone afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launcher.core import runtime

#: What is reserved to see whether it may be used: free space alone does not show a quota.
RESERVE_BYTES = 256 << 20
_SMALL_WRITES = 10
_SMALL_BYTES = 4096


def folders(run_root: str | Path, data_cache: str | None) -> dict[str, Path]:
    """Name -> folder that a run writes to, as this process sees them."""
    return {
        "run.root": runtime.user_path(run_root).absolute(),
        "cache": runtime.user_path(data_cache).absolute() if data_cache else runtime.cache_dir(),
        "hub cache": runtime.hub_cache().absolute(),
        "TMPDIR": Path(tempfile.gettempdir()),
    }


def facts(named: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """Name -> what `measure` finds for its folder."""
    return {name: measure(folder) for name, folder in named.items()}


def measure(folder: Path, reserve_bytes: int = RESERVE_BYTES) -> dict[str, Any]:
    """Facts of a folder; one that is not there yet stands for the nearest that is.

    error: why nothing can be written, else None; free_bytes, free_files: what is left for this
    user; reserved: whether `reserve_bytes` could be had; write_s: median seconds of a durable
    atomic write of 4 KiB; locks: whether a lock keeps a second opener out.
    """
    place = _nearest(folder)
    found: dict[str, Any] = {"path": str(folder), "filesystem": _filesystem(place), "error": None}
    try:
        room = os.statvfs(place)
        found["free_bytes"] = room.f_frsize * room.f_bavail
        # File systems without a fixed number of files say 0 of 0.
        found["free_files"] = room.f_favail if room.f_files else None
        with _scratch(place) as scratch:
            found["write_s"] = statistics.median(_small_writes(scratch))
            found["locks"] = _locks(scratch / "lock")
            found["reserved"] = _reserves(scratch / "reserve", reserve_bytes)
    except OSError as error:
        found["error"] = error.strerror or str(error)
    return found


def _nearest(folder: Path) -> Path:
    """The folder itself, or the first parent that exists: a file there is in the way."""
    return next(place for place in (folder, *folder.parents) if os.path.lexists(place))


@contextlib.contextmanager
def _scratch(place: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=".launcher-doctor-", dir=place) as scratch:
        yield Path(scratch)


def _small_writes(scratch: Path) -> list[float]:
    times = []
    for number in range(_SMALL_WRITES):
        begin = time.perf_counter()
        temporary = scratch / f"{number}.tmp"
        with open(temporary, "wb") as file:
            file.write(bytes(_SMALL_BYTES))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, scratch / "file")
        times.append(time.perf_counter() - begin)
    return times


def _locks(path: Path) -> bool:
    with open(path, "w", encoding="utf-8") as first, open(path, encoding="utf-8") as second:
        try:
            fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        try:
            fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _reserves(path: Path, num_bytes: int) -> bool:
    """Whether `num_bytes` can be had; True too where a file system cannot reserve."""
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, num_bytes)
        except OSError as error:
            return error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return True


def _filesystem(place: Path) -> str:
    """Type of the file system of a folder, such as ext4, nfs4 or lustre."""
    best, name = "", "unknown"
    with contextlib.suppress(OSError):
        target = str(place.resolve())
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
            _, mount, kind, *_ = line.split()
            mount = mount.replace("\\040", " ")
            inside = target == mount or target.startswith(mount.rstrip("/") + "/")
            if inside and len(mount) >= len(best):
                best, name = mount, kind
    return name
