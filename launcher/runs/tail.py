"""Reading files that other processes are still writing."""

from __future__ import annotations

import os
from pathlib import Path


class Tail:
    """New whole lines of a file that grows; a file that is not there yet is empty."""

    def __init__(self, path: Path, *, from_end: bool = False) -> None:
        self.path = path
        self._rest = b""
        self._position = 0
        if from_end and path.is_file():
            self._position = path.stat().st_size

    def lines(self, *, final: bool = False) -> list[str]:
        """Lines completed since the last call; with `final` also what follows the last break."""
        try:
            with open(self.path, "rb") as file:
                if os.fstat(file.fileno()).st_size < self._position:  # written anew
                    self._position, self._rest = 0, b""
                file.seek(self._position)
                new = file.read()
        except FileNotFoundError:
            return []
        self._position += len(new)
        *whole, self._rest = (self._rest + new).split(b"\n")
        if final and self._rest:
            whole.append(self._rest)
            self._rest = b""
        return [line.decode(errors="replace") for line in whole]
