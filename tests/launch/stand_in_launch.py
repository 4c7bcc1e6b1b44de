"""`launcher train` and `submit` on an existing run folder, with stand-ins for the run plane.

`python -m stand_in_launch train|submit RUN`. All but the two module names is the launcher's own.
"""

from __future__ import annotations

import dataclasses
import sys

from launcher import cli
from launcher.config.compose import compose
from launcher.core.rundir import RunDir
from launcher.launch.local import LocalBackend
from launcher.runs import start
from launcher.runs.follow import follow


def train(words: list[str]) -> int:
    run = RunDir(words[0])
    attempt, backend = _submit(run, attached=True)
    return follow(run, attempt, backend)


def submit(words: list[str]) -> int:
    _submit(RunDir(words[0]), attached=False)
    return 0


def _submit(run: RunDir, *, attached: bool) -> tuple[int, LocalBackend]:
    attempt, backend = start.begin(start.resumable(run)), LocalBackend()
    spec = dataclasses.replace(
        start.spec(run, attempt, compose.load(run.config)),
        module="stand_in",
        prepare_module="stand_in_prepare",
    )
    backend.submit(backend.plan(spec), attached=attached)
    return attempt, backend


if __name__ == "__main__":
    cli.VERBS["train"] = ("", "stand_in_launch:train")
    cli.VERBS["submit"] = ("", "stand_in_launch:submit")
    sys.exit(cli.main(sys.argv[1:]))
