"""Ctrl-C on a terminal, at any moment of a verb that works in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher import interruptible
from launcher.errors import ExitCode
from support.project import LAUNCHER
from support.ranks import environment


def test_the_module_gets_its_words_and_its_exit_code_is_kept(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text(
        "import sys\nif __name__ == '__main__':\n    print(sys.argv[1:])\n    sys.exit(5)\n"
    )
    done = subprocess.run(
        interruptible.command("echo", "-x", "y z"), cwd=tmp_path, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr, done.returncode) == ("['-x', 'y z']\n", "", 5)


def test_interrupted_while_it_imports(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time\nprint('here', flush=True)\ntime.sleep(60)\n")
    with subprocess.Popen(
        [sys.executable, "-m", "launcher.interruptible", "slow"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        child.send_signal(signal.SIGINT)
        assert (child.wait(30), child.stderr and child.stderr.read()) == (ExitCode.interrupted, "")


@pytest.mark.slow
@pytest.mark.parametrize("after_s", [0.5, 1.0, 2.0])
def test_a_report_stops_without_a_traceback(tmp_path: Path, after_s: float) -> None:
    with subprocess.Popen(
        [*LAUNCHER, "data", "report", "model=tiny", "data.train=builtin:quickstart-chat"],
        cwd=tmp_path,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        time.sleep(after_s)
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does: to all of them
        _, messages = child.communicate(timeout=60)
    assert child.returncode == ExitCode.interrupted, messages
    assert "Traceback" not in messages
