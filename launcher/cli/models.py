"""Verbs that need data, a tokenizer or a model: each starts a process of the run plane."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from launcher.cli import arguments
from launcher.cli.arguments import Argument
from launcher.errors import ExitCode
from launcher.rundir import RunDir, find_run, read_json
from launcher.runtime import environment_without_ranks

_BASE: Argument = (["--base"], {"action": "store_true", "help": "the model before training"})
_CHECKPOINT: Argument = (
    ["--checkpoint"],
    {"type": int, "metavar": "STEP", "help": "default: the newest"},
)
_SAMPLING: tuple[Argument, ...] = (
    (["--max-new-tokens"], {"type": int, "metavar": "N", "help": "longest answer (256)"}),
    (["--temperature"], {"type": float, "metavar": "T", "help": "0 = always the likeliest"}),
    (["--top-p"], {"type": float, "metavar": "P", "help": "from the likeliest share P only"}),
    (["--top-k"], {"type": int, "metavar": "K", "help": "from the K likeliest only"}),
    (["--seed"], {"type": int, "metavar": "S", "help": "seed of the choice"}),
    (["--system"], {"metavar": "TEXT", "help": "system message"}),
    _CHECKPOINT,
    _BASE,
)
_SAMPLES: tuple[Argument, ...] = (
    (["--count"], {"type": int, "metavar": "N", "help": "number of records (3)"}),
    (["--split"], {"choices": ("train", "validation"), "help": "default: train"}),
)


def evaluate(words: list[str]) -> int:
    """Score a model on the held-out records of its run."""
    wants_json = (["--json"], {"action": "store_true", "help": "for programs"})
    parsed = arguments.existing_run("eval", words, _CHECKPOINT, _BASE, wants_json)
    return _become("launcher.train.score", parsed)


def compare(words: list[str]) -> int:
    """Compare models with the first of them on the same held-out records."""
    parsed = arguments.plain(
        "compare",
        words,
        (
            ["models"],
            {
                "nargs": "+",
                "metavar": "MODEL",
                "help": "RUN, RUN:base, RUN:STEP (a checkpoint) or a Hugging Face FOLDER",
            },
        ),
        (
            ["--require"],
            {
                "choices": ("better", "not-worse"),
                "help": "exit 3 unless all others are better, or not worse, than the first",
            },
        ),
        (["--json"], {"action": "store_true", "help": "for programs"}),
    )
    return _call("launcher.train.compare", *parsed.models, *_words(parsed, "require", "json"))


def export(words: list[str]) -> int:
    """Write a checkpoint as a Hugging Face folder."""
    parsed = arguments.existing_run(
        "export",
        words,
        (["--merge"], {"action": "store_true", "help": "fold adapters into the base weights"}),
        _CHECKPOINT,
        (
            ["-o", "--out"],
            {"type": os.path.abspath, "metavar": "DIR", "help": "default: the run's export/"},
        ),
    )
    return _become("launcher.train.export", parsed)


def generate(words: list[str]) -> int:
    """Answer prompts."""
    parsed = arguments.existing_run(
        "generate",
        words,
        (
            ["-p", "--prompt"],
            {"action": "append", "metavar": "TEXT", "help": "may be repeated; default: stdin"},
        ),
        (["--raw"], {"action": "store_true", "help": "continue the text as it stands"}),
        *_SAMPLING,
    )
    return _become("launcher.train.generate", parsed)


def chat(words: list[str]) -> int:
    """Talk to the model in the terminal."""
    return _become("launcher.train.chat", arguments.existing_run("chat", words, *_SAMPLING))


def report(words: list[str]) -> int:
    """Write report.html; prints its path."""
    run = arguments.find(arguments.existing_run("report", words))
    from launcher.report import build

    print(build(run))
    return ExitCode.ok


def data_prepare(words: list[str]) -> int:
    """Prepare the data of a config without making a run; prints the cache folders as JSON."""
    parsed = arguments.overrides("data prepare", words)
    with tempfile.TemporaryDirectory(prefix="launcher-prepare-") as folder:
        run = _unborn_run(parsed, folder)
        code = _call("launcher.data.prepare", str(run))
        if code == ExitCode.ok:
            print(arguments.as_json(read_json(run.data)))
    return code


def data_show(words: list[str]) -> int:
    """Print samples of what is trained on: of a run, a cache folder, or the data of a config."""
    parsed = arguments.overrides("data show", words, *_SAMPLES)
    options = _words(parsed, "count", "split")
    named = parsed.overrides
    if len(named) == 1 and "=" not in named[0]:
        path = Path(named[0])
        source = path if (path / "index.json").is_file() else find_run(named[0]).path
        return _call("launcher.data.show", str(source), *options)
    with tempfile.TemporaryDirectory(prefix="launcher-show-") as folder:
        run = _unborn_run(parsed, folder)
        code = _call("launcher.data.prepare", str(run))
        return code or _call("launcher.data.show", str(run), *options)


def _unborn_run(parsed: Namespace, folder: str) -> RunDir:
    """A folder that has the config of a run and nothing else."""
    from launcher.config import compose

    run = RunDir(folder)
    compose.save(compose.compose(parsed.overrides, parsed.config_dir), run.config)
    return run


def _call(module: str, *words: str) -> int:
    command = [sys.executable, "-m", module, *words]
    code = subprocess.run(command, env=environment_without_ranks()).returncode  # noqa: S603
    return code if code >= 0 else ExitCode.internal


def _become(module: str, parsed: Namespace) -> int:
    """Replace this process by the run plane's, in the folder where the run was created."""
    from launcher.jobs.start import working_folder

    run = arguments.find(parsed)
    os.chdir(working_folder(run))
    sys.stdout.flush()
    names = [name for name in vars(parsed) if name not in ("run", "root")]
    command = [sys.executable, "-m", module, str(run), *_words(parsed, *names)]
    os.execve(sys.executable, command, environment_without_ranks())  # noqa: S606


def _words(parsed: Namespace, *names: str) -> list[str]:
    """The given options as the words that the run plane takes."""
    words = []
    for name in names:
        value = getattr(parsed, name)
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif value not in (None, False):
            # With "=", because a text may begin with a dash.
            words += [f"{flag}={item}" for item in (value if isinstance(value, list) else [value])]
    return words
