"""The verbs on data. Each starts a process of the run plane."""

from __future__ import annotations

import os
import tempfile
from argparse import Namespace
from pathlib import Path

from launcher import entry
from launcher.cli import arguments
from launcher.cli.arguments import Argument
from launcher.core.errors import ConfigError, ExitCode
from launcher.core.files import read_json
from launcher.core.rundir import RunDir, find_run


def _number(text: str) -> str:
    """The text, so that a 0 is handed on like any other number; `ValueError` if it is none."""
    float(text)
    return text


_SAMPLES: tuple[Argument, ...] = (
    (["--count"], {"type": int, "metavar": "N", "help": "number of records (3)"}),
    (["--split"], {"choices": ("train", "validation"), "help": "default: train"}),
)
_REPORT: tuple[Argument, ...] = (
    (["--profile"], {"metavar": "NAME", "help": "check the rules of a service too: openai"}),
    (["--json"], {"action": "store_true", "help": "print report.json"}),
    (
        ["--fail-on"],
        {
            "choices": ("never", "warn", "fail"),
            "help": "exit with code 3 if a rule (of data.gate, if that names some) says so: never",
        },
    ),
    (
        ["-o", "--out"],
        {"type": os.path.abspath, "metavar": "DIR", "help": "default: in the launcher's cache"},
    ),
)
_CLEAN: tuple[Argument, ...] = (
    (
        ["-o", "--out"],
        {"type": os.path.abspath, "metavar": "DIR", "required": True, "help": "a new folder"},
    ),
    (
        ["--drop"],
        {"metavar": "RULES", "help": "duplicates,near_duplicates,leaks,conflicts or other rules"},
    ),
    (["--redact"], {"metavar": "RULES", "help": "pii,secrets: replace by their kind"}),
    (
        ["--cap"],
        {"action": "append", "metavar": "FIELD=N", "help": "N records of each value, at most"},
    ),
    (
        ["--temperature"],
        {"type": _number, "metavar": "T", "help": "even out labels or sources: n^(1/T)"},
    ),
)


def prepare(words: list[str]) -> int:
    """Prepare the data of a config without making a run; prints the cache folders as JSON."""
    parsed = arguments.overrides("data prepare", words)
    with tempfile.TemporaryDirectory(prefix="launcher-prepare-") as folder:
        run = _unborn_run(parsed, folder)
        code = _call("launcher.data.prepare", str(run))
        if code == ExitCode.ok:
            print(arguments.as_json(read_json(run.data)))
    return code


def show(words: list[str]) -> int:
    """Print samples of what is trained on: of a run, a cache folder, or the data of a config."""
    parsed = arguments.overrides("data show", words, *_SAMPLES)
    options = arguments.words(parsed, "count", "split")
    from launcher.config.compose import ownfile

    named = parsed.overrides
    if len(named) == 1 and "=" not in named[0] and not ownfile.is_named(named[0]):
        path = Path(named[0])
        source = path if (path / "index.json").is_file() else find_run(named[0]).path
        return _call("launcher.data.show", str(source), *options)
    with tempfile.TemporaryDirectory(prefix="launcher-show-") as folder:
        run = _unborn_run(parsed, folder)
        code = _call("launcher.data.prepare", str(run))
        return code or _call("launcher.data.show", str(run), *options)


def report(words: list[str]) -> int:
    """Say what is wrong with the data of a config; prints the path of the page."""
    return _curate("report", arguments.overrides("data report", words, *_REPORT), _REPORT)


def clean(words: list[str]) -> int:
    """Write a cleaned copy of the training data of a config."""
    return _curate("clean", arguments.overrides("data clean", words, *_CLEAN), _CLEAN)


def _curate(name: str, parsed: Namespace, known: tuple[Argument, ...]) -> int:
    options = arguments.words(parsed, *(_attribute(names[-1]) for names, _ in known))
    with tempfile.TemporaryDirectory(prefix=f"launcher-{name}-") as folder:
        return _call(f"launcher.curate.{name}", str(_unborn_run(parsed, folder)), *options)


def _attribute(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _unborn_run(parsed: Namespace, folder: str) -> RunDir:
    """A folder that has the config of a run and nothing else."""
    from launcher.config.check import checks
    from launcher.config.compose import compose

    config = compose.compose(parsed.overrides, parsed.config_dir)
    if problems := checks.report_problems(config):
        raise ConfigError(problems)
    run = RunDir(folder)
    compose.save(config, run.config)
    return run


def _call(module: str, *words: str) -> int:
    code = entry.call(module, *words)
    return code if code >= 0 else ExitCode.internal
