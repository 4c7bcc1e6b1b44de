"""Trackers follow a run: metrics.jsonl always, others by config. Only rank 0 has any."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from launcher.config import schema
from launcher.config.schema import conversion
from launcher.config.schema.variants import TRACKERS
from launcher.core.files import read_json, write_json
from launcher.core.rundir import RunDir


class Tracker(Protocol):
    """What a tracker does. Any of these may fail: `Trackers` catches it and training goes on.

    It is made from the run, its config, and that config as plain values (`compose.to_dict`).
    """

    @property
    def stays_on(self) -> bool:
        """Whether it is tried again after a failure; else it is left out from then on."""

    def start(self, resumed_step: int | None) -> None:
        """Open the run at the tracker, or join it again to go on from `resumed_step`.

        What was logged after that step is logged again. None: the run begins anew.
        """

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


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` with NaN and infinities as text, since JSON has no such numbers."""
    return {
        key: str(value) if isinstance(value, float) and value - value != 0.0 else value
        for key, value in values.items()
    }


#: Fields of a line that later ones can be set against, besides its step.
_AXES = ("epoch", "tokens")


def series(values: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers of a line by the names under which trackers show them.

    Train metrics stand under train/, evaluation metrics as they are named (eval/...), epoch and
    tokens for themselves. What was not measured (None) is left out.
    """
    prefix = "train/" if values.get("kind", "train") == "train" else ""
    return {
        key if key in _AXES else f"{prefix}{key}": value
        for key, value in values.items()
        if key not in ("step", "time", "kind") and value is not None
    }


_LOST = "lines are lost until it can be written"
_OFF = "this tracker is off for the rest of the attempt"


class Trackers:
    """Hands every call to all trackers; one that fails is warned about once, then left out.

    One that stays on is never left out: what it cannot write is lost, the next is tried again.
    """

    def __init__(
        self, trackers: Mapping[str, Tracker], *, warn: Callable[[str], None] | None = None
    ) -> None:
        self._trackers = dict(trackers)
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
            resolved: the config as plain values (`compose.to_dict`), handed to the trackers as far
                as others may see it.
            resumed_step: last step of the checkpoint that this process continues from. None: a
                fresh start.
            warn: takes warnings; stderr if not given.
        What cannot be opened is warned about, and raises nothing.
        """
        opened, resolved = cls({}, warn=warn), conversion.for_others(resolved)
        for name in TRACKERS if is_main else ():
            options = getattr(config.track, name, None)
            if options is not None and not options.is_on:
                continue
            try:
                opened._trackers[name] = TRACKERS.load(name)(run, config, resolved)
            except Exception as error:
                opened._warn_once(name, error, _OFF)
        opened._each(lambda tracker: tracker.start(resumed_step))
        return opened

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Record `values` (with time and kind) at `step`."""
        line = {"step": step, **values}
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
                if not tracker.stays_on:
                    del self._trackers[name]
                self._warn_once(name, error, _LOST if tracker.stays_on else _OFF)

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
