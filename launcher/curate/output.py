"""Writing what people asked for into the folder that they named."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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


def printable(text: str) -> str:
    """The text with what has no UTF-8, as in names of files, spelt out."""
    return text.encode("utf-8", "backslashreplace").decode()


def json_line(value: Any) -> bytes:
    """A record as a line of JSON: NaN and bytes that are no text become null."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=_text, allow_nan=False)
    except ValueError:  # NaN and infinities are no JSON
        text = json.dumps(_finite(value), ensure_ascii=False, default=_text)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:  # half of a pair of surrogates has no UTF-8, but an escape
        return json.dumps(json.loads(text)).encode() + b"\n"


def _text(value: Any) -> str | None:
    """What JSON has no type for, such as a date, as a text; null for bytes that are none."""
    if not isinstance(value, bytes):
        return str(value)
    try:
        return value.decode()
    except UnicodeDecodeError:
        return None


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
