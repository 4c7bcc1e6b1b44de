"""Verbs that make runs and look after them."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from launcher.cli import arguments
from launcher.errors import ExitCode

if TYPE_CHECKING:
    from launcher.rundir import RunDir


def train(words: list[str]) -> int:
    """Make a run, launch it and follow it to its end."""
    run, attempt = _new_run("train", words)
    return _launch_and_follow(run, attempt)


def submit(words: list[str]) -> int:
    """Make a run and launch it; prints the run id."""
    run, attempt = _new_run("submit", words)
    from launcher.jobs import start

    start.submit(run, attempt, attached=False)
    print(run.name)
    print(f"follow it with `launcher logs -f {run}`", file=sys.stderr)
    return ExitCode.ok


def resume(words: list[str]) -> int:
    """Launch the next attempt of a run and follow it to its end."""
    ranks = (["--processes"], {"type": int, "metavar": "N", "help": "go on with N ranks"})
    parsed = arguments.existing_run("resume", words, ranks)
    from launcher.config import create
    from launcher.jobs import start

    run = start.resumable(arguments.find(parsed))
    if parsed.processes is not None:
        create.replan(run, parsed.processes)
    return _launch_and_follow(run, start.begin(run))


def _new_run(verb: str, words: list[str]) -> tuple[RunDir, int]:
    parsed = arguments.overrides(verb, words)
    from launcher.config import compose, create, plan
    from launcher.jobs import start

    run = create.create(parsed.overrides, config_dirs=parsed.config_dir)
    made = plan.Plan.from_json(run.plan.read_text())
    print(plan.describe(compose.load(run.config), made), file=sys.stderr)
    print(f"run      {run.name}\nfolder   {run}", file=sys.stderr)
    return run, start.begin(run)


def _launch_and_follow(run: RunDir, attempt: int) -> int:
    from launcher.jobs import start
    from launcher.jobs.follow import follow

    backend = start.submit(run, attempt, attached=True)
    return follow(run, attempt, backend)
