"""The verb that looks at machine, cluster and services."""

from __future__ import annotations

import sys

from launcher.cli import arguments
from launcher.core.errors import ExitCode

#: Overrides of these say that it is about a job, not about this host alone.
_JOB = ("launch", "cluster")


def doctor(words: list[str]) -> int:
    """Print what works and what to do about the rest; 1 if something a run needs does not."""
    parsed = arguments.overrides(
        "doctor",
        words,
        arguments.JSON,
        (
            ["--cluster"],
            {"action": "store_true", "help": "all ranks of a job, not one on this host alone"},
        ),
        (
            ["--timeout"],
            {
                "type": float,
                "default": 300.0,
                "metavar": "S",
                "help": "longest wait for the ranks once their job runs, in seconds (300)",
            },
        ),
        (["--keep"], {"action": "store_true", "help": "keep the folder of the ranks"}),
    )
    from launcher.config.compose import compose
    from launcher.core import runtime
    from launcher.doctor import finding
    from launcher.doctor.checks import diagnose

    config = compose.compose(parsed.overrides, parsed.config_dir)
    keys = [word.partition("=")[0].lstrip("+").partition(".")[0] for word in parsed.overrides]
    findings = diagnose(
        config,
        whole_job=parsed.cluster or any(key in _JOB for key in keys),
        timeout_s=parsed.timeout,
        keep=parsed.keep,
        say=lambda text: print(f"doctor: {text}", file=sys.stderr, flush=True),
    )
    bad = any(found.verdict is finding.Severity.fail for found in findings)
    if parsed.json:
        print(arguments.as_json(finding.as_dict(findings)))
    else:
        print(finding.text(findings, color=runtime.wants_color(sys.stdout)))
    return ExitCode.internal if bad else ExitCode.ok
