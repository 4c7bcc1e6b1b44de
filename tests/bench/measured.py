"""Commands under measurement: what they say, when they began, and how much memory they take."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

#: What starts two ranks of a script or module, in front of it; with a Python in front of all.
TWO_RANKS = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
TORCHRUN = (sys.executable, *TWO_RANKS)


class Measured(NamedTuple):
    """A command that has ended."""

    text: str
    """stdout and stderr."""
    started: float
    """Seconds since the epoch."""
    memory: int
    """Peak resident bytes of its largest process."""


def run(command: Sequence[str], folder: Path) -> Measured:
    """Run a command in `folder` to its end, one thread a process; `SystemExit` if it fails."""
    started = time.time()
    # Relative ones would be of that folder.
    paths = [os.path.abspath(own) for own in os.environ.get("PYTHONPATH", "").split(":") if own]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": ":".join(paths)}
    with open(folder / "out.txt", "w+") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=subprocess.STDOUT, env=environment, cwd=folder
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        text = out.read()
    if process.returncode:
        raise SystemExit(f"{shlex.join(command)} failed:\n{text[-4000:]}")
    return Measured(text, started, usage.ru_maxrss * 1024)


def peer(command: Sequence[str], folder: Path) -> dict[str, Any]:
    """What a command prints as `RESULT {json}`, with its `memory`."""
    text, _, memory = run(command, folder)
    line = next(line for line in text.splitlines() if line.startswith("RESULT "))
    return {**json.loads(line.removeprefix("RESULT ")), "memory": memory}


def lines(folder: Path, words: Sequence[str]) -> list[dict[str, Any]]:
    """The training lines of the run that `words`, among them its name, have left in `folder`."""
    name = next(word for word in words if word.startswith("run.name=")).partition("=")[2]
    text = (folder / name / "metrics.jsonl").read_text()
    return [line for line in map(json.loads, text.splitlines()) if line["kind"] == "train"]
