"""Who is named as having asked a run to stop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from launcher.train.signals import StopFlag

RANK = """
import os, signal, sys, time
from launcher.train.signals import StopFlag
flag = StopFlag()
flag.install()
parent = os.getppid()
print("ready", flush=True)
while os.getppid() == parent:
    time.sleep(0.01)
os.kill(os.getpid(), signal.SIGTERM)
print(flag.by, flush=True)
"""
PARENT = """
import subprocess, sys
subprocess.Popen([sys.executable, "-c", sys.argv[1]])
input()
"""


def test_a_signal_is_named() -> None:
    handlers = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    flag = StopFlag()
    try:
        flag.install()
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag
        assert flag.by == "SIGTERM"
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_the_end_of_what_started_the_ranks_is_named() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, RANK],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        assert parent.stdout.readline() == "ready\n"
        parent.stdin.write("\n")
        parent.stdin.close()
        said = parent.stdout.readline()
    assert said == "SIGTERM (the process that started the ranks has ended)\n"
