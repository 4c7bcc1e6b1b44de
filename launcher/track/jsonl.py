"""metrics.jsonl: one line a record. Always on, and what report, status and service read."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from launcher.config.schema import Config
from launcher.core.files import storage_errors, write_atomic
from launcher.core.rundir import RunDir
from launcher.track.tracker import finite


class JsonLines:
    """A line is on disk when `log` returns; one that cannot be written is lost."""

    stays_on = True

    def __init__(self, run: RunDir, config: Config, resolved: Mapping[str, Any]) -> None:
        self._path = run.metrics

    def start(self, resumed_step: int | None) -> None:
        """Drop what a resumed run writes again: lines after its step and torn ones.

        No file is held open: every line opens it, so it may move or fail in between.
        """
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if resumed_step is not None and json.loads(line)["step"] <= resumed_step:
                    kept.append(line + "\n")
        write_atomic(self._path, "".join(kept))

    def log(self, values: Mapping[str, Any]) -> None:
        """Append one line, whole or not at all; `StorageError` on a full or read-only disk."""
        line = json.dumps(finite(values), ensure_ascii=False) + "\n"
        with storage_errors(self._path), open(self._path, "ab") as file:
            end = file.seek(0, 2)
            try:
                file.write(line.encode())
                file.flush()
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(end)
                raise

    def summary(self, values: Mapping[str, Any]) -> None:
        """The comparison has its own file."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Predictions have their own file."""

    def artifact(self, name: str, folder: Path) -> None:
        """The export already lies in the run folder."""

    def finish(self, exit_code: int, *, preempted: bool) -> None:
        """Every line is closed already."""
