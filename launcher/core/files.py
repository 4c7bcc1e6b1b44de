"""Files of state: written whole or not at all, and what a storage that refuses means for a user.
Standard library only.

Every write is atomic (temporary file, fsync, rename), so a reader never sees half a file and a full
disk never damages what was there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pwd
import shlex
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from launcher.core.errors import LauncherError, StorageError

_ELSEWHERE = "`run.root` for runs, LAUNCHER_CACHE for what is kept between them"
_HINTS = {
    errno.ENOSPC: "free space on this file system, then resume the run",
    errno.EDQUOT: "the quota is used up: free space, then resume the run",
    errno.EFBIG: "a limit keeps files this small: raise it (ulimit -f), then resume the run",
    errno.EROFS: f"the file system is read-only: choose another place ({_ELSEWHERE})",
    errno.EACCES: f"mend the permissions, or choose another place ({_ELSEWHERE})",
    errno.EPERM: f"mend the permissions, or choose another place ({_ELSEWHERE})",
    errno.ENOTDIR: f"a file stands where a folder is needed: choose another place ({_ELSEWHERE})",
}
#: How `tempfile` begins when it finds no folder to write to.
_NO_TEMPORARY = "No usable temporary directory"


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn the operating system's storage failures on `path` into `StorageError` with a hint."""
    try:
        yield
    except OSError as error:
        known = storage_error(error, path)
        if known is None:
            raise
        raise known from error


def too_many_processes(error: BaseException) -> LauncherError | None:
    """What it means that no process or thread could be started; None if it is another error."""
    text = str(error)
    words = ("can't start new thread", os.strerror(errno.EAGAIN))
    if not (isinstance(error, OSError | RuntimeError) and any(word in text for word in words)):
        return None
    return LauncherError(
        f"no further process or thread may be started here: {text}",
        where="ulimit -u",
        hint="raise the limit (ulimit -u) or end other processes of this user; fewer of"
        " launch.processes and data.workers need fewer",
    )


def storage_error(error: OSError, path: Path | None = None) -> StorageError | None:
    """What `error` means for a user; None if it is none of the storage, or nobody knows where."""
    if error.errno == errno.ENOENT and str(error.strerror).startswith(_NO_TEMPORARY):
        hint = "name a folder with room that you may write to: export TMPDIR=/path/to/folder"
        return StorageError(str(error.strerror), where="environment variable TMPDIR", hint=hint)
    named = error.filename if isinstance(error.filename, str) else None
    place = path or (Path(named) if named else None)
    if place is None and error.errno in (errno.ENOSPC, errno.EDQUOT):  # of a library's file
        hint = "free space where runs, the cache and temporary files (TMPDIR) lie"
        return StorageError(error.strerror or str(error), where="storage", hint=hint)
    if error.errno not in _HINTS or place is None:
        return None
    found = error.strerror or str(error)
    if error.errno in (errno.EACCES, errno.EPERM):
        denied = _denied(Path(named) if named else place)
        found += f": {ownership(denied)}" if denied else ""
    return StorageError(found, where=str(place), hint=_HINTS[error.errno])


def require_readable(path: Path) -> None:
    """Raises `StorageError` if a file or folder at or below `path`, or a folder above, is closed to
    this user: libraries say of such a file that it does not exist or is damaged."""
    denied = next(_closed(path), None)
    if denied is not None:
        raise StorageError(
            f"{os.strerror(errno.EACCES)}: {ownership(denied)}",
            where=str(denied),
            hint=f"its owner opens it with: chmod -R a+rX {shlex.quote(str(denied))}"
            " (LAUNCHER_CACHE=FOLDER keeps a cache of your own)",
        )


def _closed(path: Path) -> Iterator[Path]:
    yield from (folder for folder in reversed(path.parents) if not _may(folder, os.X_OK))
    if not os.path.exists(path):
        return
    if not _may(path, os.R_OK):
        yield path
    for folder, _, names in os.walk(path):
        places = (Path(folder), *(Path(folder, name) for name in names))
        yield from (place for place in places if os.path.exists(place) and not _may(place, os.R_OK))


def _may(path: Path, mode: int) -> bool:
    """Whether this user may do that to `path`; to read a folder is to enter it too."""
    if mode & os.R_OK and path.is_dir():
        mode |= os.X_OK
    return os.access(path, mode, effective_ids=True) or not os.path.lexists(path)


def _denied(path: Path) -> Path | None:
    """The file or folder, at or above `path`, that keeps this user from writing there."""
    there = [place for place in (path, *path.parents) if os.path.lexists(place)]
    return next((place for place in there if not _may(place, os.R_OK | os.W_OK)), None)


def ownership(path: Path) -> str:
    """Whose `path` is, its mode, and who asks."""
    facts = path.stat()
    mode = stat.filemode(facts.st_mode)
    return f"{path} is of {_user(facts.st_uid)}, {mode}, and you are {_user(os.geteuid())}"


def _user(uid: int) -> str:
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def give_usual_permissions(folder: Path) -> None:
    """Give the files below `folder` the mode that the umask leaves to new files, whatever the
    library that wrote them has chosen (safetensors 0.8 closes them to all others)."""
    mode = 0o666 & ~_umask()
    for file in folder.rglob("*") if folder.is_dir() else (folder,):
        if file.is_file() and not file.is_symlink():
            with storage_errors(file):
                file.chmod(mode)


def close_code(folder: Path) -> None:
    """Let only owner and group write the Python files in `folder`, and put others in their place,
    whatever the umask leaves: who works with the folder runs them."""
    files = [*folder.glob("*.py"), *folder.glob("*_modules/**/*.py")]
    folders = {folder, *(path.parent for path in files)}
    with contextlib.suppress(OSError):  # a mount may know no modes
        for path in (*files, *folders) if files else ():
            path.chmod(path.stat().st_mode & ~stat.S_IWOTH & 0o7777)


def _umask() -> int:
    # Set and put back, as elsewhere, it would be another for a moment in all threads.
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("Umask:"):
            return int(line.split()[1], 8)
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def open_lock(path: Path) -> IO[str]:
    """A file to lock, made if it is not there; another user's serves as well."""
    with storage_errors(path):
        try:
            return open(path, "a", encoding="ascii")
        except PermissionError:
            if not path.exists():
                raise
            return open(path, encoding="ascii")


def write_atomic(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Write a file so that it is there whole or not at all, also after a power cut.

    Without `durable` a power cut may undo it; a thousand files then do not wait for the disk.

    Raises `StorageError` when the disk is full, read-only or not permitted.
    """
    data = content.encode() if isinstance(content, str) else content
    # Threads of one process may write the same file.
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    with storage_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                if durable:
                    os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        if durable:
            fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value: Any, *, durable: bool = True) -> None:
    """Atomically write `value` as JSON with a final newline."""
    write_atomic(path, as_json(value), durable=durable)


def as_json(value: Any) -> str:
    """JSON text with a final newline."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def read_json(path: Path, default: Any = None) -> Any:
    """Content of a JSON file, or `default` if it is absent or unreadable."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default
