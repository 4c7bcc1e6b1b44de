"""Standard input, output and error that are closed, full, or read no more."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

from launcher.core.errors import StorageError


def discard(*streams: TextIO | None) -> None:
    """Let what is written to these streams vanish from now on: their reader is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.dup2(nowhere, stream.fileno())  # type: ignore[union-attr]
    os.close(nowhere)


def append_to(log: os.PathLike[str]) -> None:
    """Add all that this process says from now on to a file, native code's too."""
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    os.close(handle)


def open_closed_streams() -> None:
    """Give stdin, stdout and stderr a place where they are closed; the next file that is opened
    would take it, and what is printed would go there.

    An empty stdin, a stdout that cannot be written, a stderr that nobody reads.
    """
    ways = (("stdin", os.O_RDONLY, "r"), ("stdout", os.O_RDONLY, "w"), ("stderr", os.O_WRONLY, "w"))
    for number, (name, flags, mode) in enumerate(ways):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, flags), True)  # the lowest free: this number
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def told(text: str, aside: str) -> None:
    """Print what has been done, `aside` on stderr; that nobody reads it any more undoes nothing."""
    try:
        print(text, flush=True)
        print(aside, file=sys.stderr, flush=True)
    except BrokenPipeError:
        discard(sys.stdout, sys.stderr)


def complain(*problems: object) -> None:
    """Print errors: see `remark`."""
    for problem in problems:
        remark(f"error: {problem}")


def remark(text: str) -> None:
    """Print on stderr; where it cannot be written, the exit code has to say it all."""
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        discard(sys.stderr)


def unwritable(error: OSError) -> StorageError | None:
    """What it means if stdout or stderr has refused to be written; None if `error` is another.

    What could not be written is given up.
    """
    if error.filename is not None:
        return None
    for stream, name in ((sys.stdout, "standard output"), (sys.stderr, "standard error")):
        try:
            stream.flush()  # what was refused is still there
            if getattr(stream, "write_through", False):
                os.write(stream.fileno(), b"\n")
        except OSError as again:
            discard(stream)
            hint = "send it to a terminal, or to a file where there is room"
            return StorageError(f"cannot be written: {again.strerror}", where=name, hint=hint)
        except (ValueError, AttributeError):
            continue
    return None
