"""Verbs that make runs and look after them."""

from __future__ import annotations

import sys

from launcher.cli import arguments
from launcher.config import compose, create, plan
from launcher.errors import ExitCode
from launcher.jobs import start
from launcher.jobs.follow import follow
from launcher.rundir import RunDir


def train(words: list[str]) -> int:
    """Make a run, launch it and follow it to its end."""
    run, attempt = _new_run("train", words)
    return _launch_and_follow(run, attempt)


def submit(words: list[str]) -> int:
    """Make a run and launch it; prints the run id."""
    run, attempt = _new_run("submit", words)
    start.submit(run, attempt, attached=False)
    print(run.name)
    print(f"follow it with `launcher logs -f {run}`", file=sys.stderr)
    return ExitCode.ok


def resume(words: list[str]) -> int:
    """Launch the next attempt of a run and follow it to its end."""
    run = start.resumable(arguments.find(arguments.existing_run("resume", words)))
    return _launch_and_follow(run, start.begin(run))


def _new_run(verb: str, words: list[str]) -> tuple[RunDir, int]:
    parsed = arguments.overrides(verb, words)
    run = create.create(parsed.overrides, config_dirs=parsed.config_dir)
    made = plan.Plan.from_json(run.plan.read_text())
    print(plan.describe(compose.load(run.config), made), file=sys.stderr)
    print(f"run      {run.name}\nfolder   {run}", file=sys.stderr)
    return run, start.begin(run)


def _launch_and_follow(run: RunDir, attempt: int) -> int:
    backend = start.submit(run, attempt, attached=True)
    return follow(run, attempt, backend)
