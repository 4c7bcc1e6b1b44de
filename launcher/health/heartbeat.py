"""Sign of life of a rank: what it does now, noted in memory and written to a small file."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import time

from launcher.config.schema.launch import WatchdogConfig
from launcher.core import processes, vitals
from launcher.core.rundir import RunDir
from launcher.core.runtime import Ranks
from launcher.core.vitals import Beat

#: Shortest time between two writes in the same phase, in seconds; more with many ranks, so that
#: the run folder's file system sees at most 64 writes a second.
INTERVAL_S = 1.0
_RANKS_A_SECOND = 64


class Heartbeat:
    """What the main thread does, for heartbeats/rank-R.json.

    `beat` only notes it, so that a slow file system holds up no step; the watchdog's thread writes.
    Without fsync: it says that a process lives, it is not state to recover from.
    """

    def __init__(self, run: RunDir, ranks: Ranks, attempt: int, limits: WatchdogConfig) -> None:
        self._path = run.heartbeat(ranks.rank)
        self._limits = {
            "start": limits.start_s,
            "step": limits.timeout_s,
            "eval": limits.eval_s,
            "save": limits.save_s,
            "export": limits.save_s,
            "end": limits.save_s,
            vitals.DONE: 0.0,
        }
        self.now = Beat(
            rank=ranks.rank,
            host=ranks.host,
            pid=os.getpid(),
            attempt=attempt,
            phase="start",
            step=0,
            time=time.time(),
            limit=limits.start_s,
            space=processes.space(),
        )
        self.changed = threading.Event()
        """Set at each change of phase."""
        self._interval_s = max(INTERVAL_S, ranks.world_size / _RANKS_A_SECOND)
        self._written: Beat | None = None
        self._written_at = 0.0
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def beat(self, phase: str, step: int, part: str = "") -> None:
        """Say that the rank begins something new: phase (`vitals.PHASES`), steps done, part."""
        before = self.now
        is_same = phase == before.phase and step == before.step
        self.now = Beat(
            rank=before.rank,
            host=before.host,
            pid=before.pid,
            attempt=before.attempt,
            phase=phase,
            step=step,
            time=time.time(),
            limit=self._limits[phase],
            space=before.space,
            part=part,
            turn=before.turn if is_same else before.turn + 1,
            count=before.count + 1 if is_same else 0,
        )
        if phase != before.phase:
            self.changed.set()

    def again(self) -> None:
        """A sign of life within the same phase, step and part."""
        self.beat(self.now.phase, self.now.step, self.now.part)

    def write_if_due(self) -> None:
        """Write what is new: a change of phase at once, others about once a second."""
        now = self.now
        if now is self._written:
            return
        is_new = self._written is None or now.phase != self._written.phase
        if is_new or time.monotonic() - self._written_at >= self._interval_s:
            self.write(now)

    def write(self, beat: Beat) -> None:
        """Write `beat`; a disk that takes no file is no reason to stop."""
        self._written, self._written_at = beat, time.monotonic()
        temporary = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(beat.to_json()), encoding="utf-8")
            os.replace(temporary, self._path)

    def answer(self, where: str, waiting: bool) -> Beat:
        """Write where the main thread is in a run that hangs; returns what was written."""
        beat = dataclasses.replace(self.now, answered=True, where=where, waiting=waiting)
        self.write(beat)
        return beat
