"""Verbs that need a model of a run: each becomes a process of the run plane."""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from typing import NoReturn

from launcher import entry
from launcher.cli import arguments
from launcher.cli.arguments import Argument
from launcher.core.errors import ConfigError, ExitCode

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


def evaluate(words: list[str]) -> int:
    """Score a model on the held-out records of its run."""
    wants_json = (["--json"], {"action": "store_true", "help": "for programs"})
    harness: Argument = (
        ["--lm-eval"],
        {
            "action": "extend",
            "type": _tasks,
            "metavar": "TASK[,TASK]",
            "help": "score tuned and base on lm-eval's tasks instead",
        },
    )
    vllm = (["--vllm"], {"action": "store_true", "help": "let vLLM make the answers"})
    options = (_CHECKPOINT, _BASE, harness, vllm, wants_json)
    parsed = arguments.existing_run("eval", words, *options)
    if parsed.base and parsed.checkpoint is not None:
        raise ConfigError(
            "--base and --checkpoint name two models",
            where="launcher eval",
            hint="give one of them, and score the other with a second command",
        )
    if parsed.lm_eval and parsed.vllm:
        raise ConfigError(
            "--lm-eval makes its own answers, not by --vllm",
            where="launcher eval",
            hint="leave out --vllm, or --lm-eval for the scores of the held-out records",
        )
    return _become("launcher.scoring.score", parsed)


def _tasks(text: str) -> list[str]:
    """Tasks of lm-eval; files by absolute path, since another folder will be the current one."""
    return [
        os.path.abspath(task) if task.endswith((".yaml", ".yml")) else task
        for task in text.split(",")
    ]


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
        (["--judge-url"], {"metavar": "URL", "help": "ask a judge too, behind this endpoint"}),
        (["--judge-model"], {"metavar": "NAME", "help": "the judge's name there"}),
        (["--json"], {"action": "store_true", "help": "for programs"}),
        (["--html"], {"metavar": "FILE", "help": "write a page: plots, slices, changed answers"}),
    )
    options = arguments.words(parsed, "require", "judge_url", "judge_model", "json", "html")
    return _replace("launcher.scoring.compare", *parsed.models, *options)


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
    return _become("launcher.inference.export", parsed)


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
    return _become("launcher.inference.generate", parsed)


def chat(words: list[str]) -> int:
    """Talk to the model in the terminal."""
    return _become("launcher.inference.chat", arguments.existing_run("chat", words, *_SAMPLING))


def report(words: list[str]) -> int:
    """Write report.html; prints its path."""
    to_open = (["--open"], {"action": "store_true", "help": "show it in the browser"})
    parsed = arguments.existing_run("report", words, to_open)
    from launcher.report import build

    page = build(arguments.find(parsed))
    print(page)
    if parsed.open:
        import webbrowser

        if not webbrowser.open(page.resolve().as_uri()):
            print(
                "there is no browser here: copy the page to a machine that has one", file=sys.stderr
            )
    return ExitCode.ok


def _become(module: str, parsed: Namespace) -> int:
    """Replace this process by the run plane's, in the folder where the run was created."""
    from launcher.runs.start import working_folder

    run = arguments.find(parsed)
    os.chdir(working_folder(run))
    sys.stdout.flush()
    names = [name for name in vars(parsed) if name not in ("run", "root")]
    return _replace(module, str(run), *arguments.words(parsed, *names))


def _replace(module: str, *words: str) -> NoReturn:
    from launcher.runs.start import refuse_in_rank

    refuse_in_rank("process")
    entry.become(module, *words)
