"""Verbs that look at runs and stop them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from launcher.cli import arguments
from launcher.core.errors import ExitCode


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
