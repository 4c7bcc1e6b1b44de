"""`python -m launcher.data.prepare RUN_DIR`: the data of a run, prepared."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from launcher import fingerprint
from launcher.core import registry
from launcher.core.errors import ConfigError, ExitCode, LauncherError
from launcher.core.files import storage_error, write_json
from launcher.core.rundir import RunDir
from launcher.data.prepare.fields import held_out_groups
from launcher.data.prepare.preparation import fetch, prepare
from launcher.data.prepare.split import say
from launcher.data.tokenizer import hide_torch


def main(arguments: list[str]) -> int:
    """Prepare the data of a run folder and write its data.json. Returns the exit code."""
    hide_torch()
    try:
        if len(arguments) != 1:
            raise ConfigError("usage: python -m launcher.data.prepare RUN_DIR")
        run = RunDir(arguments[0]).require()
        from launcher.config.compose import compose

        config = compose.load(run.config)
        fetch(config)  # before it, nothing is known of what URLs hold
        fingerprint.require_same_data(run, config)
        report = None
        if config.data.gate:
            report = registry.load("launcher.curate.report.gate:check")(config)
        found: dict[str, Any] = dict(prepare(config))
        if config.eval.slices and found["validation"]:
            run.eval.mkdir(parents=True, exist_ok=True)
            write_json(run.slices, held_out_groups(config, Path(found["validation"])))
        write_json(run.data, {**found, "report": report} if report else found)
    except LauncherError as error:
        say(f"error: {error}")
        return error.exit_code
    except OSError as error:
        known = storage_error(error)
        if known is None:
            raise
        say(f"error: {known}")
        return known.exit_code
    except KeyboardInterrupt:
        return ExitCode.interrupted
    return ExitCode.ok


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
