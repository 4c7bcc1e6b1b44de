"""Trackers follow a run: metrics.jsonl always, others by config. Only rank 0 has any."""

from __future__ import annotations

import contextlib
import json
import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from launcher.config import schema
from launcher.config.schema.variants import TRACKERS
from launcher.rundir import RunDir, read_json, storage_errors, write_atomic, write_json


class Tracker(Protocol):
    """What a tracker does. Any of these may fail: `Trackers` catches it and training goes on."""

    def start(self) -> None:
        """Open the run at the tracker, or join it again after a resume."""

    def log(self, values: Mapping[str, Any]) -> None:
        """One line of metrics; `values` holds step, time and kind ("train" or "eval")."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Final numbers of the run."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table, e.g. sample answers."""

    def artifact(self, name: str, folder: Path) -> None:
        """Offer a folder (the export); a tracker takes it only where its options say so."""

    def finish(self, exit_code: int, *, preempted: bool) -> None:
        """Close the run; `preempted` says that it will be continued."""


class JsonLines:
    """metrics.jsonl: one line a record, on disk when `log` returns. The source of the report."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep_until(self, step: int | None) -> None:
        """Drop what a resumed run writes again: lines after `step` (None: all) and torn ones."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if step is not None and json.loads(line)["step"] <= step:
                    kept.append(line + "\n")
        write_atomic(self._path, "".join(kept))

    def start(self) -> None:
        """Nothing to open: every line opens the file, so it may move or fail in between."""

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


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with NaN and infinities as text, since JSON has no such numbers."""
    return {
        key: str(value) if isinstance(value, float) and value - value != 0.0 else value
        for key, value in values.items()
    }


_LOST = "lines are lost until it can be written"
_OFF = "this tracker is off for the rest of the attempt"


class Trackers:
    """Hands every call to all trackers; one that fails is warned about once, then left out.

    metrics.jsonl is never left out: a line that cannot be written is lost, the next is tried again.
    """

    def __init__(
        self,
        trackers: Mapping[str, Tracker],
        *,
        lines: JsonLines | None = None,
        warn: Callable[[str], None] | None = None,
    ) -> None:
        self._trackers = dict(trackers)
        self._lines = lines
        self._warn = warn or _warn_on_stderr
        self._warned: set[str] = set()

    @classmethod
    def open(
        cls,
        run: RunDir,
        config: schema.Config,
        resolved: Mapping[str, Any],
        *,
        resumed_step: int | None = None,
        is_main: bool = True,
        warn: Callable[[str], None] | None = None,
    ) -> Trackers:
        """The trackers of a run, started. Other ranks than 0 get an empty set: calls need no `if`.

        Args:
            resolved: the config as plain values (`compose.to_dict`), handed to the trackers.
            resumed_step: last step of the checkpoint that this process continues from; later lines
                of metrics.jsonl are dropped. None: a fresh start.
            warn: takes warnings; stderr if not given.
        What cannot be opened is warned about, and raises nothing.
        """
        if not is_main:
            return cls({})
        lines = JsonLines(run.metrics)
        opened = cls({}, lines=lines, warn=warn)
        try:
            lines.keep_until(resumed_step)
        except Exception as error:
            opened._warn_once("metrics.jsonl", error, _LOST)
        if config.track.wandb.mode is not schema.WandbMode.disabled:
            try:
                opened._trackers["wandb"] = TRACKERS.load("wandb")(
                    run, config, resolved, tracker_id(run, "wandb")
                )
            except Exception as error:
                opened._warn_once("wandb", error, _OFF)
        opened._each(lambda tracker: tracker.start())
        return opened

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record `values` (with time and kind) at `step`."""
        line = {"step": step, **values}
        if self._lines is not None:
            try:
                self._lines.log(line)
            except Exception as error:
                self._warn_once("metrics.jsonl", error, _LOST)
        self._each(lambda tracker: tracker.log(line))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Record final numbers."""
        self._each(lambda tracker: tracker.summary(values))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Record a table."""
        self._each(lambda tracker: tracker.table(name, columns, rows))

    def artifact(self, name: str, folder: Path) -> None:
        """Offer a folder to the trackers."""
        self._each(lambda tracker: tracker.artifact(name, folder))

    def finish(self, exit_code: int = 0, *, preempted: bool = False) -> None:
        """Close all trackers; later calls do nothing."""
        self._each(lambda tracker: tracker.finish(exit_code, preempted=preempted))
        self._trackers = {}

    def _each(self, call: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:
                # Trackers wrap network clients, which raise anything.
                del self._trackers[name]
                self._warn_once(name, error, _OFF)

    def _warn_once(self, name: str, error: Exception, consequence: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            self._warn(f"tracker {name} failed ({error!r}); training goes on, {consequence}")


def tracker_id(run: RunDir, name: str) -> str:
    """The run's id at tracker `name`, from tracking.json; made and written if there is none."""
    ids = read_json(run.tracking, {})
    if not isinstance(ids.get(name), str):
        ids[name] = secrets.token_hex(4)
        write_json(run.tracking, ids)
    return str(ids[name])


def _warn_on_stderr(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
