"""What lies in the service's folder is its owner's: keys, data and models of all projects."""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

_LOG = logging.getLogger(__name__)
_OTHERS = 0o077


@contextlib.contextmanager
def umask() -> Iterator[None]:
    """What is made meanwhile is for its owner alone, whatever the umask."""
    before = os.umask(_OTHERS)
    try:
        yield
    finally:
        os.umask(before)


def close_to_others() -> None:
    """What this process and its children make from now on is for its owner alone."""
    os.umask(_OTHERS)


def mend(home: Path, own: Collection[str]) -> None:
    """Close what others could read of the service's things, named `own`, in its folder.

    The folder itself is closed too, unless there are other things in it: then it is somebody's for
    more than this. What cannot be closed, because it is another user's, is warned of.
    """
    found = [entry for entry in home.iterdir() if entry.name in own]
    is_alone = all(entry.name in own or entry.name.startswith(".") for entry in home.iterdir())
    for path in [home, *found] if is_alone else found:
        _close(path)


def _close(path: Path) -> None:
    mode = stat.S_IMODE(path.lstat().st_mode)
    if path.is_symlink() or not mode & _OTHERS:
        return
    try:
        path.chmod(mode & ~_OTHERS)
    except OSError:
        hint = f"chmod go= {path}"
        _LOG.warning("%s can be read by other users of this host: %s", path, hint)
    else:
        _LOG.warning("%s could be read by other users of this host: closed to them", path)
