"""`python -m launcher.curate.report RUN_DIR [-o DIR] [--profile openai] [--json]`: read all data,
write report.json and report.html, and say the verdict."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.config.compose import compose
from launcher.core.errors import ExitCode, LauncherError
from launcher.core.rundir import RunDir
from launcher.curate.output import require_writable
from launcher.curate.report.report import PAGE_NAME, build, default_folder, over, summary, write
from launcher.data.prepare.split import say
from launcher.data.tokenizer import hide_torch

_ALLOW = "mend the data as said above, or allow more with data.report.fail and data.report.warn"


def main(arguments: Sequence[str]) -> int:
    """Write the report on the data of a run folder's config. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="launcher data report", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--profile")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--fail-on", default="never")
    options = parser.parse_args(arguments)
    hide_torch()
    try:
        config = compose.load(RunDir(options.run).require().config)
        if options.out:
            require_writable(options.out)
        report = build(config, options.profile)
        folder = options.out or default_folder(config, report)
        write(report, folder)
    except LauncherError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return ExitCode.interrupted
    print(json.dumps(report, indent=2) if options.json else summary(report))
    if not options.json:
        print(folder / PAGE_NAME)
    stopping = over(report, options.fail_on, config.data.gate)
    if stopping:
        say(f"error: --fail-on {options.fail_on}: {', '.join(stopping)}\n  HINT: {_ALLOW}")
    return ExitCode.data if stopping else ExitCode.ok


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
