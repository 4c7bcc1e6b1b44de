"""Sign of life of a rank: step, phase, time, pid and host in one small file."""

from __future__ import annotations

import contextlib
import json
import os
import time

from launcher.rundir import RunDir
from launcher.runtime import Ranks

#: Shortest time between two writes in the same phase, in seconds.
INTERVAL_S = 1.0


class Heartbeat:
    """Writes heartbeats/rank-R.json at every change of phase and about once a second.

    Written without fsync: it says that a process lives, it is not state to recover from.
    """

    def __init__(self, run: RunDir, ranks: Ranks) -> None:
        self._path = run.heartbeat(ranks.rank)
        self._ranks = ranks
        self._phase = ""
        self._written = 0.0
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def beat(self, phase: str, step: int) -> None:
        """Say that the rank is in `phase` (start, step, eval, save, export, end) at step `step`."""
        now = time.time()
        if phase == self._phase and now - self._written < INTERVAL_S:
            return
        self._phase, self._written = phase, now
        content = {
            "rank": self._ranks.rank,
            "host": self._ranks.host,
            "pid": os.getpid(),
            "phase": phase,
            "step": step,
            "time": now,
        }
        temporary = self._path.with_suffix(".tmp")
        with contextlib.suppress(OSError):
            temporary.write_text(json.dumps(content))
            os.replace(temporary, self._path)
