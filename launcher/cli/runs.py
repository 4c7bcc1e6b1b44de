"""Verbs that make runs, look at them and stop them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.cli import arguments, sweeps
from launcher.core import streams
from launcher.core.errors import ExitCode

if TYPE_CHECKING:
    from launcher.core.rundir import RunDir

MULTIRUN = {*sweeps.MULTIRUN[0]}
DRY_RUN: arguments.Argument = (
    ["--dry-run"],
    {"action": "store_true", "help": "print what would be submitted; make and start nothing"},
)


def train(words: list[str]) -> int:
    """Make a run, or with -m a sweep, launch it and follow it to its end."""
    if not MULTIRUN.isdisjoint(words):
        return sweeps.start("train", words, DRY_RUN, follow=True)
    new = _new_run("train", words)
    return _launch_and_follow(*new) if new else ExitCode.ok


def submit(words: list[str]) -> int:
    """Make a run, or with -m a sweep, and launch it; prints the run id."""
    if not MULTIRUN.isdisjoint(words):
        return sweeps.start("submit", words, DRY_RUN, follow=False)
    new = _new_run("submit", words)
    if new is None:
        return ExitCode.ok
    from launcher.runs import start

    run, attempt = new
    start.submit(run, attempt, attached=False)
    streams.told(run.name, f"follow it with {run.command('logs', '-f')}")
    return ExitCode.ok


def resume(words: list[str]) -> int:
    """Launch the next attempt of a run, perhaps to a later end, and follow it to its end."""
    ranks = (["--processes"], {"type": int, "metavar": "N", "help": "go on with N ranks"})
    meaning = (
        "another end: train.steps=N, train.epochs=N or train.early_stop.patience=N; or ranks that"
        " share sequences otherwise: engine.sequence_parallel=N"
    )
    end = (["overrides"], {"nargs": "*", "metavar": "OVERRIDE", "help": meaning})
    parsed = arguments.existing_run("resume", words, ranks, end)
    from launcher.config import create
    from launcher.runs import extension, start

    start.refuse_in_rank("run")
    run = arguments.find(parsed)
    if parsed.overrides:
        change = extension.changed(run, parsed.overrides, parsed.processes)
        return _launch_and_follow(run, start.begin(run, change))
    start.resumable(run)
    if parsed.processes is not None:
        create.replan(run, parsed.processes)
    return _launch_and_follow(run, start.begin(run))


def _new_run(verb: str, words: list[str]) -> tuple[RunDir, int] | None:
    """A new run and its first attempt; None for a dry run, which makes nothing."""
    parsed = arguments.overrides(verb, words, sweeps.MULTIRUN, DRY_RUN)
    from launcher.config import create
    from launcher.config.derive import plan
    from launcher.runs import requirements, start

    start.refuse_in_rank("run")
    config, made = create.checked(parsed.overrides, config_dirs=parsed.config_dir)
    run = create.named(config, parsed.overrides)
    print(plan.describe(config, made), file=sys.stderr)
    requirements.require(config)
    start.require_free(run)
    if parsed.dry_run:
        print(start.rehearsed(run, config, made.world_size, ask=False).describe())
        return None
    start.rehearsed(run, config, made.world_size, ask=True)
    start.release_name(run)
    create.make(run, config, made, parsed.overrides)
    try:
        attempt = start.begin(run)
        print(f"run      {run.name}\nfolder   {run}", file=sys.stderr, flush=True)
    except BrokenPipeError:
        from launcher.runs.cancel import set_cancelled

        set_cancelled(run, "not started: nobody reads the output")
        raise
    except KeyboardInterrupt as error:
        raise start.interrupted(run, error) from None
    return run, attempt


def _launch_and_follow(run: RunDir, attempt: int) -> int:
    from launcher.runs import start
    from launcher.runs.follow import follow

    backend = start.submit(run, attempt, attached=True)
    return follow(run, attempt, backend)


def status(words: list[str]) -> int:
    """Print one run in full, or a table of all."""
    parsed = arguments.existing_run("status", words, arguments.JSON, optional=True)
    from launcher.runs import status

    if parsed.run:
        found = status.details(arguments.find(parsed))
        print(arguments.as_json(found) if parsed.json else status.text(found))
        return ExitCode.ok
    rows, sweeps = status.listing(parsed.root), _sweeps(parsed.root)
    if parsed.json:
        runs = [{"kind": "run", **row.to_json()} for row in rows]
        print(arguments.as_json([*runs, *({"kind": "sweep", **sweep} for sweep in sweeps)]))
        return ExitCode.ok
    if rows:
        print(status.table(rows))
    if sweeps:
        from launcher.sweeps import table

        print("\n" * bool(rows) + table.listed(sweeps))
    if not rows and not sweeps:
        print(f"there are no runs under {parsed.root}/", file=sys.stderr)
    return ExitCode.ok


def _sweeps(root: str) -> list[dict[str, Any]]:
    """Sweeps under `root`; what they need is imported only where there are any."""
    if next(Path(root).glob("*/sweep.json"), None) is None:
        return []
    from launcher.sweeps import table

    return table.listing(root)


def logs(words: list[str]) -> int:
    """Print or follow a log."""
    parsed = arguments.existing_run(
        "logs",
        words,
        (["--rank"], {"type": int, "metavar": "R", "help": "the log of this rank alone"}),
        (["--attempt"], {"type": int, "metavar": "N", "help": "default: the last"}),
        (["-f", "--follow"], {"action": "store_true", "help": "go on until the run ends"}),
    )
    from launcher.runs import logs

    run = arguments.find(parsed)
    for line in logs.lines(run, rank=parsed.rank, attempt=parsed.attempt, follow=parsed.follow):
        print(line, flush=parsed.follow)
    if not parsed.follow or parsed.attempt is not None:
        return ExitCode.ok
    from launcher.runs.status import observed_run

    # Who waits for the end of a run is told how it ended.
    return observed_run(run).exit_code or ExitCode.ok


def cancel(words: list[str]) -> int:
    """Stop a run and write so."""
    parsed = arguments.existing_run(
        "cancel",
        words,
        (["--now"], {"action": "store_true", "help": "end the ranks without a checkpoint"}),
        (["--lost"], {"action": "store_true", "help": "only write the state: the host is gone"}),
    )
    from launcher.runs.cancel import cancel

    run = arguments.find(parsed)
    print(f"{run.name}: stopping", file=sys.stderr)
    found = cancel(run, now=parsed.now, lost=parsed.lost)
    print(f"{run.name}: {found.state.value}", file=sys.stderr)
    return ExitCode.ok


def join(words: list[str]) -> int:
    """Bring this host into a run with launch=torchrun."""
    number = {"type": int, "metavar": "N", "help": "place of this host; default: the next free"}
    parsed = arguments.existing_run("join", words, (["--node-rank"], number))
    from launcher.runs.join import join

    return join(parsed.run, parsed.root, parsed.node_rank)
