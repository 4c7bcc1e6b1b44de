"""What /proc says about processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from launcher.core import processes


@pytest.fixture
def sleeper():
    process = subprocess.Popen(["sleep", "60"])
    yield process
    process.kill()
    process.wait()


def test_living_process_is_alive_since_it_started(sleeper):
    assert processes.alive(sleeper.pid, time.time())
    assert sleeper.pid in processes.children(os.getpid())


def test_reused_pid_is_not_the_process_that_was_meant(sleeper):
    assert not processes.alive(sleeper.pid, time.time() - 3600)


def test_zombie_and_absent_process_are_not_alive():
    process = subprocess.Popen(["true"])
    end = time.monotonic() + 30
    while processes.alive(process.pid, time.time()) and time.monotonic() < end:
        time.sleep(0.01)
    assert process.returncode is None  # nobody has waited for it: a zombie
    assert not processes.alive(process.pid, time.time())
    process.wait()
    assert not processes.alive(process.pid, time.time())
    assert not processes.alive(0, time.time())


def test_signal_to_an_absent_process_is_no_error():
    process = subprocess.Popen(["true"])
    process.wait()
    processes.send(process.pid, signal.SIGTERM)


NEST = """
import subprocess, sys
from launcher.core import processes
processes.adopt_orphans()
# The shell ends at once: its child, in a session of its own, is an orphan.
subprocess.run(["sh", "-c", "setsid sleep 60 & echo $!"])
found = processes.descendants(__import__("os").getpid())
print(len(found), processes.kill_descendants(), flush=True)
"""


def test_orphans_in_other_sessions_are_found_and_killed():
    done = subprocess.run(
        [sys.executable, "-c", NEST], capture_output=True, text=True, timeout=60, check=True
    )
    pid, verdict = done.stdout.splitlines()
    assert verdict == "1 []"
    assert not processes.alive(int(pid), time.time())
