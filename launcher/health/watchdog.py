"""A thread of every rank that writes its heartbeat and ends the rank when the run hangs.

It compares only what its main thread does with the limit of the phase. Ranks wait for each other,
so a hang anywhere shows in every rank, and no file is read before it does. Then each rank that can
dumps its stacks and says where it is; the lowest of them names the rank that cannot, or is behind,
and settles the run. All end with exit code 6, whatever their main threads wait for.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import FrameType, TracebackType

from launcher.config.schema.launch import WatchdogConfig
from launcher.core import processes, vitals
from launcher.core.errors import ExitCode
from launcher.core.rundir import RunDir
from launcher.core.runtime import Ranks
from launcher.core.vitals import Beat
from launcher.health.heartbeat import Heartbeat

#: Time between two looks, in seconds.
TICK_S = 1.0
#: Dumps the stacks of a rank, also while native code holds the interpreter.
DUMP = signal.SIGUSR2
#: Code that waits for other ranks: torch's and DeepSpeed's collectives, and this project's.
_WAITING = (
    *("/torch/distributed/", "/deepspeed/comm/"),
    *("/launcher/distributed/collectives.py", "/launcher/distributed/rendezvous.py"),
)
_PACKAGE = str(Path(__file__).resolve().parents[1])


def collective_timeout(limits: WatchdogConfig) -> timedelta:
    """When torch itself may give up a collective: after the watchdog, which knows more."""
    all_limits = [limits.timeout_s, limits.start_s, limits.eval_s, limits.save_s]
    return timedelta(seconds=2 * max(all_limits) + 60) if all(all_limits) else timedelta(days=7)


class Watchdog:
    """Context manager around all that a rank does: watches the thread that enters it."""

    def __init__(self, run: RunDir, ranks: Ranks, attempt: int, limits: WatchdogConfig) -> None:
        self.heart = Heartbeat(run, ranks, attempt, limits)
        self._run, self._ranks, self._attempt = run, ranks, attempt
        all_limits = [limits.timeout_s, limits.start_s, limits.eval_s, limits.save_s]
        self._tick_s = min([TICK_S, *(limit / 10 for limit in all_limits if limit)])
        self._answered: Beat | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._main = threading.get_ident()
        path = vitals.stacks_file(self._run, self._attempt, self._ranks.rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        if self._ranks.is_main:  # torchrun may start the ranks of an attempt anew
            vitals.stall_file(self._run, self._attempt).unlink(missing_ok=True)
        self._stacks = open(path, "a", encoding="utf-8")
        faulthandler.register(DUMP, file=self._stacks, all_threads=True)
        self.heart.write_if_due()
        self._thread.start()
        return self.heart

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.heart.beat(vitals.DONE, self.heart.now.step)
        self._closed.set()
        self.heart.changed.set()
        self._thread.join()
        self.heart.write(self.heart.now)
        faulthandler.unregister(DUMP)
        self._stacks.close()
        path = Path(self._stacks.name)
        if not path.stat().st_size:
            path.unlink()

    def _watch(self) -> None:
        patience = Patience(self._tick_s)
        while not self._closed.is_set():
            self.heart.changed.clear()
            self.heart.write_if_due()
            beat = self.heart.now
            spent_s = patience.spent_on(beat)
            if 0 < beat.limit < spent_s:
                self._look()
            self.heart.changed.wait(self._tick_s)

    # ---- this rank makes no progress

    def _look(self) -> None:
        beats = self._beats()
        if not vitals.is_stalled(beats, time.time()):
            return
        self._answered = self._answer()
        wait_s = min(vitals.ANSWER_S, max(1.0, self._answered.limit))
        if not self._await(self._all_answered, wait_s / 2):
            self._ask_silent_ranks()
            self._await(self._all_answered, wait_s / 2)
        if self._is_over():
            return
        answered = [beat.rank for beat in self._beats().values() if beat.answered]
        told = vitals.stall_file(self._run, self._attempt)
        if self._ranks.rank == min(answered):
            self._report()
        elif not self._await(told.exists, wait_s):
            self._report()  # the rank that should have done it cannot
        self._kill_silent_ranks()
        os._exit(int(ExitCode.hang))

    def _beats(self) -> dict[int, Beat]:
        # Its own file may be missing: on a full disk.
        mine, now = self._answered, self.heart.now
        own = mine if mine is not None and mine.time == now.time else now
        return {**vitals.read(self._run, self._attempt), self._ranks.rank: own}

    def _answer(self) -> Beat:
        where, waiting = place_of(sys._current_frames().get(self._main))
        now = self.heart.now
        print(
            f"rank {now.rank} on host {now.host}, process {now.pid}: no sign of life for"
            f" {time.time() - now.time:.0f} s in {now.place()}, at {where}",
            file=self._stacks,
            flush=True,
        )
        faulthandler.dump_traceback(self._stacks, all_threads=True)
        self._stacks.flush()
        return self.heart.answer(where, waiting)

    def _await(self, condition: Callable[[], bool], within_s: float) -> bool:
        end = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > end or self._is_over():
                return False
            time.sleep(0.1)
        return True

    def _all_answered(self) -> bool:
        return all(beat.answered or beat.phase == vitals.DONE for beat in self._beats().values())

    def _is_over(self) -> bool:
        """Whether a rank has gone on after all."""
        return not vitals.is_stalled(self._beats(), time.time())

    def _silent_here(self) -> list[Beat]:
        mine, beats = self.heart.now, self._beats().values()
        silent = [b for b in beats if not b.answered and b.phase != vitals.DONE]
        return [b for b in silent if b.space == mine.space and processes.alive(b.pid, b.time)]

    def _ask_silent_ranks(self) -> None:
        for beat in self._silent_here():
            if not processes.is_stopped(beat.pid):
                os.kill(beat.pid, DUMP)

    def _kill_silent_ranks(self) -> None:
        """A stopped process does not die of the SIGTERM that an agent sends it."""
        for beat in self._silent_here():
            os.kill(beat.pid, signal.SIGKILL)

    def _report(self) -> None:
        reason = vitals.settle(self._run, self._attempt, self._beats(), self._describe)
        print(f"HangError: {reason}", file=sys.stderr, flush=True)

    def _describe(self, beat: Beat) -> str:
        if beat.space != self.heart.now.space:
            return "its process is stopped or gone, or its host is"
        return processes.describe(beat.pid, beat.time)


class Patience:
    """How long a rank has shown nothing new, counting only time in which this process ran.

    Where a whole job is suspended and continued, no rank has hung.
    """

    def __init__(self, tick_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most_s, self._clock = 3 * tick_s + 1.0, clock
        self._looked, self._spent, self._beat = clock(), 0.0, 0.0

    def spent_on(self, beat: Beat) -> float:
        """Seconds since this sign of life was first seen; call it about once a tick."""
        now = self._clock()
        passed, self._looked = min(now - self._looked, self._most_s), now
        self._spent = self._spent + passed if beat.time == self._beat else 0.0
        self._beat = beat.time
        return self._spent


def place_of(frame: FrameType | None) -> tuple[str, bool]:
    """(file:line function of this project, innermost first; whether it waits for other ranks)."""
    calls: list[str] = []
    collective = ""
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if any(part in file for part in _WAITING):
            collective = collective or name
        if file.startswith(_PACKAGE) and len(calls) < 2:
            calls.append(f"{Path(file).name}:{frame.f_lineno} {name}")
        frame = frame.f_back
    text = " < ".join([*([collective] if collective else []), *calls])
    return text, bool(collective)
