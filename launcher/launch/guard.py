"""The watch from outside over hanging ranks, for hangs in which no rank can act for itself.

A single rank that is stopped, all ranks stopped, or native code that never gives up the
interpreter: ranks that are only stuck end themselves before this acts (`launcher.health.watchdog`).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

from launcher.config.schema.launch import WatchdogConfig
from launcher.core import processes, vitals
from launcher.core.rundir import RunDir
from launcher.core.vitals import Beat

#: Time between two looks, in seconds; longer with many ranks.
TICK_S = 1.0
_FILES_A_SECOND = 64
#: What the ranks need to answer, judge and end, beyond the waits between them.
_SLACK_S = 10.0


class Guard:
    """Watches the ranks of one attempt; what it knows of them beyond their files is of this host.

    `kill` ends the ranks; by default all processes that this one has started.
    """

    def __init__(
        self,
        run: RunDir,
        attempt: int,
        limits: WatchdogConfig,
        kill: Callable[[], object] = processes.kill_descendants,
    ) -> None:
        self._run, self._attempt, self._limits = run, attempt, limits
        self._kill = kill
        self._started = time.time()
        self._looked = time.monotonic()
        self._every_s = TICK_S
        self._stalled_s = 0.0

    def look(self) -> None:
        """Judge about once a second; ends the ranks and settles the run if it hangs for good."""
        passed = time.monotonic() - self._looked
        if passed < self._every_s:
            return
        self._looked += passed
        beats = self._beats()
        self._every_s = max(TICK_S, len(beats) / _FILES_A_SECOND)
        if not vitals.is_stalled(beats, time.time()):
            self._stalled_s = 0.0
            return
        # Suspended together with its ranks, this process has not waited for them.
        self._stalled_s += min(passed, 2 * self._every_s)
        able = [beat for beat in beats.values() if _can_act(beat)]
        if self._stalled_s > (2 * vitals.ANSWER_S + _SLACK_S if able else 2 * TICK_S):
            self._end(beats)

    def _beats(self) -> dict[int, Beat]:
        """Signs of life; a rank that has given none since the attempt began is in its start."""
        silent = Beat(
            rank=0,
            host=os.uname().nodename,
            pid=0,
            attempt=self._attempt,
            phase="start",
            step=0,
            time=self._started,
            limit=self._limits.start_s,
            part="imports",
        )
        beats = vitals.read(self._run, self._attempt)
        return beats or {0: silent}

    def _end(self, beats: dict[int, Beat]) -> None:
        able = [beat for beat in beats.values() if _is_here(beat) and _can_act(beat)]
        for beat in able:
            processes.send(beat.pid, signal.SIGUSR2)  # stacks, whatever holds the interpreter
        if able:
            time.sleep(TICK_S)
        if not self._run.status().state.is_final:
            vitals.settle(self._run, self._attempt, beats, _describe)
        self._kill()


def _can_act(beat: Beat) -> bool:
    """Whether the rank may still end itself; of another host's nothing else is known."""
    if beat.phase == vitals.DONE or not beat.pid:
        return False
    if beat.space != processes.space():
        return True
    return processes.alive(beat.pid, beat.time) and not processes.is_stopped(beat.pid)


def _is_here(beat: Beat) -> bool:
    return beat.space == processes.space() and processes.alive(beat.pid, beat.time)


def _describe(beat: Beat) -> str:
    if not beat.pid:
        return "it has given no sign of life yet"
    seen = beat.space == processes.space()
    return processes.describe(beat.pid, beat.time) if seen else "its process is on another host"
