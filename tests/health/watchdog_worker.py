"""A rank without torch under a real watchdog: `watchdog_worker.py RUN RANK WORLD LIMITS TASK...`.

LIMITS is JSON for WatchdogConfig. Tasks are done in turn and each is announced on stdout.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time

from launcher.config.schema.launch import WatchdogConfig
from launcher.core.rundir import RunDir
from launcher.core.runtime import Ranks
from launcher.health.heartbeat import Heartbeat
from launcher.health.watchdog import Watchdog


def main(argv: list[str]) -> int:
    run, rank, world, limits = RunDir(argv[0]), int(argv[1]), int(argv[2]), json.loads(argv[3])
    ranks = Ranks(rank, world, rank, world, socket.gethostname(), "test")
    with Watchdog(run, ranks, 1, WatchdogConfig(**limits)) as heart:
        for task in argv[4:]:
            name, _, seconds = task.partition("=")
            print(name, flush=True)
            TASKS[name](heart, float(seconds or 0))
    return 0


def work(heart: Heartbeat, seconds: float) -> None:
    end = time.monotonic() + seconds
    step = heart.now.step
    while time.monotonic() < end:
        step += 1
        heart.beat("step", step, "forward")
        time.sleep(0.02)
        heart.beat("step", step, "update")


def evaluate(heart: Heartbeat, seconds: float) -> None:
    """Many batches, each with a sign of life."""
    end = time.monotonic() + seconds
    heart.beat("eval", heart.now.step)
    while time.monotonic() < end:
        heart.again()
        time.sleep(0.02)


def save(heart: Heartbeat, seconds: float) -> None:
    """One long write without a sign of life."""
    heart.beat("save", heart.now.step)
    time.sleep(seconds)


def stuck(heart: Heartbeat, seconds: float) -> None:
    """A lock that nobody releases."""
    heart.beat("step", heart.now.step, "update")
    threading.Event().wait()


def wait(heart: Heartbeat, seconds: float) -> None:
    """A step that takes long, whatever the reason."""
    heart.beat("step", heart.now.step, "update")
    time.sleep(seconds)


def holds_interpreter(heart: Heartbeat, seconds: float) -> None:
    """Native code that never gives the interpreter to another thread."""
    heart.beat("step", heart.now.step, "forward")
    re.match(r"(a+)+$", "a" * 60 + "b")


TASKS = {task.__name__: task for task in (work, evaluate, save, stuck, wait, holds_interpreter)}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
