"""Troubles that pass by themselves: what they are called, and how long the same is tried again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

from launcher.core.errors import ExitCode, LauncherError

Answer = TypeVar("Answer")

#: Longest time that somebody is made to wait for a scheduler that takes nothing.
PATIENCE_S = 60.0
_FIRST_S, _MOST_S = 1.0, 15.0
_TICK_S = 0.1


class BusyError(LauncherError):
    """A scheduler cannot do now what it is asked for; the same may work in a while."""

    exit_code = ExitCode.preempted
    is_open = True
    """Whether it may have been done all the same: its answer is not known."""


def patiently(
    act: Callable[[], Answer],
    for_s: float = PATIENCE_S,
    *,
    is_stopped: Callable[[], bool] = lambda: False,
) -> Answer:
    """What `act` returns, which is called again while it raises `BusyError`, and says so.

    The waits double up to 15 s. After `for_s` seconds, or once `is_stopped`, the error is raised;
    what has taken all of them at its first try has a second one, unless they are 0.
    """
    end, wait_s, is_last = time.monotonic() + for_s, _FIRST_S, not for_s
    while True:
        try:
            return act()
        except BusyError as error:
            left_s = end - time.monotonic()
            if (left_s <= 0 and is_last) or is_stopped():
                raise
            left_s, is_last = max(left_s, _FIRST_S), True
            said = error.problems[0].found.splitlines()[-1]
            print(
                f"waiting: {said}; tried again in {min(wait_s, left_s):.0f} s,"
                f" for {left_s:.0f} s at most",
                file=sys.stderr,
                flush=True,
            )
        until = time.monotonic() + min(wait_s, left_s)
        while time.monotonic() < until and not is_stopped():
            time.sleep(_TICK_S)
        wait_s = min(2 * wait_s, _MOST_S)
