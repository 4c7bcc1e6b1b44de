"""Writing what people asked for into the folder that they named."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from launcher.core.errors import StorageError

_HINT = "free space there, or give another folder with -o"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what goes wrong while `folder` is written into `StorageError` with the way out."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            error.strerror or str(error), where=str(error.filename or folder), hint=_HINT
        ) from error
    except StorageError as error:
        problem = error.problems[0]
        raise StorageError(problem.found, where=problem.where, hint=_HINT) from error


def require_writable(folder: Path) -> None:
    """`StorageError` if nothing can be written into `folder`: before hours are spent on what is to
    be written."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise StorageError("no permission to write", where=str(folder))
