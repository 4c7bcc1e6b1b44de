"""The controller's signs of life, for the server that watches it."""

from __future__ import annotations

import time
from pathlib import Path

_FILE = "controller.alive"


def sign(home: Path) -> None:
    """The controller of this folder is at work."""
    (home / _FILE).touch()


def age_s(home: Path) -> float | None:
    """Seconds since the last sign; None if there has been none."""
    try:
        return time.time() - (home / _FILE).stat().st_mtime
    except FileNotFoundError:
        return None
