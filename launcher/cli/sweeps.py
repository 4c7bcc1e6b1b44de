"""Verbs about sweeps: many runs of one command line."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from launcher import entry
from launcher.cli import arguments
from launcher.cli.arguments import Argument
from launcher.core import streams
from launcher.core.errors import ConfigError, ExitCode
from launcher.core.rundir import command

if TYPE_CHECKING:
    from launcher.sweeps.folder import SweepDir

MULTIRUN: Argument = (
    ["-m", "--multirun"],
    {"action": "store_true", "help": "a sweep: a run for each combination of a=1,2 b=range(1,4)"},
)


def start(verb: str, words: list[str], dry_run: Argument, *, follow: bool) -> int:
    """Make a sweep and run it; the same command again goes on with it."""
    parsed = arguments.overrides(verb, words, MULTIRUN, dry_run)
    from launcher.runs.start import refuse_in_rank
    from launcher.sweeps import preparation
    from launcher.sweeps.controller import SweepController

    refuse_in_rank("sweep")
    sweep, request = preparation.request(parsed.overrides, parsed.config_dir)
    if said := preparation.announced(request):
        print(f"{request.kind:8} {said}", file=sys.stderr)
    preparation.require_free(sweep, request)
    if parsed.dry_run:
        print(preparation.rehearsal(sweep, request))
        return ExitCode.ok
    request = sweep.request() if sweep.exists() else preparation.make(sweep, request)
    print(f"sweep    {sweep.name}\nfolder   {sweep}", file=sys.stderr)
    if follow or SweepController.submits_all(request):
        code = SweepController(sweep, request, follow=follow).run()
    else:
        code = _in_background(sweep)
    if not follow:
        streams.told(sweep.name, f"look at it with {command('sweep status', sweep.path)}")
    return code


def resume(words: list[str]) -> int:
    """Go on with a sweep: adopt what runs, start what is missing."""
    sweep = _find(_parsed("resume", words))
    from launcher.runs.start import refuse_in_rank
    from launcher.sweeps import controller

    refuse_in_rank("controller")
    return controller.resume(sweep)


def status(words: list[str]) -> int:
    """Print a table of the trials."""
    parsed = _parsed("status", words, arguments.JSON)
    from launcher.sweeps import table

    rows = table.rows(_find(parsed))
    if parsed.json:
        print(arguments.as_json([row.to_json() for row in rows]))
    else:
        print(table.text(_find(parsed).request(), rows))
    return ExitCode.ok


def best(words: list[str]) -> int:
    """Print the best trial's overrides, or a file of them, for `$(...)` in a command line."""
    parsed = _parsed("best", words, arguments.JSON)
    from launcher.sweeps import table

    sweep = _find(parsed)
    request = sweep.request()
    row = table.best(request, table.rows(sweep))
    if row is None:
        raise ConfigError(
            f"no trial has succeeded with a value of {request.metric}",
            where=str(sweep),
            hint=f"{command('sweep status', sweep.path)} says how they ended",
        )
    if parsed.json:
        print(arguments.as_json(row.to_json()))
    else:
        print(f"{row.name}: {request.metric} {row.value:.6g}", file=sys.stderr)
        print(f"overrides: {table.pasted(row.trial.words)}", file=sys.stderr)
        print(table.substituted(sweep, row))
    return ExitCode.ok


def report(words: list[str]) -> int:
    """Write report.html; prints its path."""
    sweep = _find(_parsed("report", words))
    from launcher.sweeps.page import build

    print(build(sweep))
    return ExitCode.ok


def wandb(words: list[str]) -> int:
    """Write a W&B sweep file."""
    out: Argument = (["-o", "--out"], {"metavar": "FILE", "help": "default: standard output"})
    parsed = _parsed("wandb", words, out)
    from launcher.sweeps import wandb_agents

    text = wandb_agents.sweep_file(_find(parsed).request())
    if parsed.out:
        with open(parsed.out, "w", encoding="utf-8") as file:
            file.write(text)
    else:
        print(text, end="")
    return ExitCode.ok


def cancel(words: list[str]) -> int:
    """Stop the controller and all trials."""
    now: Argument = (["--now"], {"action": "store_true", "help": "without checkpoints"})
    parsed = _parsed("cancel", words, now)
    from launcher.sweeps.cancel import cancel

    sweep = _find(parsed)
    count = cancel(sweep, now=parsed.now)
    print(f"{sweep.name}: {count} trials cancelled", file=sys.stderr)
    return ExitCode.ok


def _in_background(sweep: SweepDir) -> int:
    """Leave the sweep to a controller that outlives the terminal."""
    from launcher.core import processes
    from launcher.core.runtime import child_environment

    command = entry.command("launcher.cli", "sweep", "resume", str(sweep))
    log = sweep.controller_log
    processes.start(command, log, child_environment(), ends_with_parent=False)
    print(f"log      {log}", file=sys.stderr)
    return ExitCode.ok


def _parsed(verb: str, words: list[str], *more: Argument) -> argparse.Namespace:
    name: Argument = (["sweep"], {"metavar": "SWEEP", "help": "name or folder of a sweep"})
    root = {"default": "runs", "metavar": "DIR", "help": "folder of the sweeps (default: runs)"}
    return arguments.plain(f"sweep {verb}", words, name, (["--root"], root), *more)


def _find(parsed: argparse.Namespace) -> SweepDir:
    from launcher.sweeps.folder import find

    return find(parsed.sweep, parsed.root)
