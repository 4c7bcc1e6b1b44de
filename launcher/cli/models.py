"""Verbs that need data, a tokenizer or a model: each becomes a process of the run plane."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from argparse import Namespace

from launcher.cli import arguments
from launcher.cli.arguments import Argument
from launcher.errors import ExitCode
from launcher.rundir import RunDir, read_json
from launcher.runtime import child_environment

_BASE: Argument = (["--base"], {"action": "store_true", "help": "the base model instead"})


def evaluate(words: list[str]) -> int:
    """Score a model on the held-out records of its run."""
    parsed = arguments.existing_run("eval", words, _BASE)
    return _become("launcher.train.evaluate", parsed, *_flags(parsed, "base"))


def export(words: list[str]) -> int:
    """Write a checkpoint as a Hugging Face folder."""
    parsed = arguments.existing_run(
        "export",
        words,
        (["--merge"], {"action": "store_true", "help": "fold adapters into the base weights"}),
        (["--checkpoint"], {"type": int, "metavar": "STEP", "help": "default: the newest"}),
        (["-o", "--out"], {"metavar": "DIR", "help": "default: export/ in the run folder"}),
    )
    out = ["-o", os.path.abspath(parsed.out)] if parsed.out else []
    return _become("launcher.train.export", parsed, *_flags(parsed, "merge", "checkpoint"), *out)


def generate(words: list[str]) -> int:
    """Answer one prompt."""
    parsed = arguments.existing_run(
        "generate",
        words,
        (["-p", "--prompt"], {"required": True, "metavar": "TEXT", "help": "what to answer"}),
        (["--max-new-tokens"], {"type": int, "metavar": "N", "help": "longest answer"}),
        (["--temperature"], {"type": float, "metavar": "T", "help": "0 = always the likeliest"}),
        _BASE,
    )
    flags = _flags(parsed, "max_new_tokens", "temperature", "base")
    return _become("launcher.train.generate", parsed, "-p", parsed.prompt, *flags)


def chat(words: list[str]) -> int:
    """Talk to the model in the terminal."""
    return _become("launcher.train.chat", arguments.existing_run("chat", words))


def report(words: list[str]) -> int:
    """Write report.html; prints its path."""
    run = arguments.find(arguments.existing_run("report", words))
    from launcher.report import build

    build(run)
    print(run.report)
    return ExitCode.ok


def data_prepare(words: list[str]) -> int:
    """Prepare the data of a config without making a run; prints the cache folders as JSON."""
    parsed = arguments.overrides("data prepare", words)
    with tempfile.TemporaryDirectory(prefix="launcher-prepare-") as folder:
        run = _unborn_run(parsed, folder)
        command = [sys.executable, "-m", "launcher.data.prepare", str(run)]
        code = subprocess.run(command, env=child_environment()).returncode  # noqa: S603
        if code == 0:
            print(arguments.as_json(read_json(run.data)))
    return code if code >= 0 else ExitCode.internal


def data_show(words: list[str]) -> int:
    """Print sample records with their targets in colour."""
    count: Argument = (["-n"], {"type": int, "metavar": "N", "help": "number of records"})
    parsed = arguments.overrides("data show", words, count)
    with tempfile.TemporaryDirectory(prefix="launcher-show-") as folder:
        run = _unborn_run(parsed, folder)
        command = [sys.executable, "-m", "launcher.data.show", str(run), *_flags(parsed, "n")]
        code = subprocess.run(command, env=child_environment()).returncode  # noqa: S603
    return code if code >= 0 else ExitCode.internal


def _unborn_run(parsed: Namespace, folder: str) -> RunDir:
    """A folder that has the config of a run and nothing else."""
    from launcher.config import compose

    run = RunDir(folder)
    compose.save(compose.compose(parsed.overrides, parsed.config_dir), run.config)
    return run


def _flags(parsed: Namespace, *names: str) -> list[str]:
    """The given options as the words that the run plane takes."""
    words = []
    for name in names:
        value = getattr(parsed, name)
        flag = f"-{name}" if len(name) == 1 else f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value not in (None, False):
            words += [flag, str(value)]
    return words


def _become(module: str, parsed: Namespace, *words: str) -> int:
    """Replace this process by the run plane's, in the folder where the run was created."""
    from launcher.jobs.start import working_folder

    run = arguments.find(parsed)
    os.chdir(working_folder(run))
    sys.stdout.flush()
    command = [sys.executable, "-m", module, str(run), *words]
    os.execve(sys.executable, command, child_environment())  # noqa: S606
