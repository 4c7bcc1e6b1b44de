"""`python -m launcher.curate.clean RUN_DIR --out=OUT ...`: a cleaned copy of the training data."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launcher.config.compose import compose
from launcher.core.errors import ConfigError, ExitCode, LauncherError
from launcher.core.rundir import RunDir
from launcher.curate.clean import choice
from launcher.curate.clean.choice import DROPS, REDACTS
from launcher.curate.clean.clean import CleanOptions, clean, printable
from launcher.curate.clean.naming import override
from launcher.curate.records.texts import plural
from launcher.data.prepare.split import say
from launcher.data.tokenizer import hide_torch


def _caps(given: Sequence[str]) -> tuple[tuple[str, int], ...]:
    caps = []
    for text in given:
        field, _, number = text.rpartition("=")
        if not field or not number.isdecimal() or int(number) < 1:
            raise ConfigError(f"{text!r} is no cap", where="--cap", hint="write e.g. label=100")
        caps.append((field, int(number)))
    return tuple(caps)


def _options(given: argparse.Namespace) -> CleanOptions:
    if given.temperature is not None and not given.temperature > 0:
        hint = "1 changes nothing, larger values even out more, e.g. 2"
        raise ConfigError(
            f"{given.temperature} is no temperature", where="--temperature", hint=hint
        )
    return CleanOptions(
        drop=tuple(choice.rules_named(given.drop, DROPS, "--drop")),
        redact=frozenset(choice.rules_named(given.redact, REDACTS, "--redact")),
        caps=_caps(given.cap),
        temperature=given.temperature,
    )


def main(arguments: Sequence[str]) -> int:
    """Clean the data of a run folder's config. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="launcher data clean", description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--drop", default="")
    parser.add_argument("--redact", default="")
    parser.add_argument("--cap", action="append", default=[])
    parser.add_argument("--temperature", type=float)
    given = parser.parse_args(arguments)
    hide_torch()
    try:
        config = compose.load(RunDir(given.run).require().config)
        told = clean(config, given.out, _options(given))
    except LauncherError as error:
        say(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return ExitCode.interrupted
    for what in ("dropped", "redacted"):
        listed = ", ".join(f"{name} {count:,}" for name, count in told[what].items())
        print(f"{what}: {listed or 'nothing'}")
    given_now = printable(override(given.out, told["train"]))
    print(f"{plural(told['written'], 'record')}: {given_now}")
    return ExitCode.ok


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
