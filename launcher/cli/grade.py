"""The verb on answers in files. It starts a process of the run plane."""

from __future__ import annotations

import os

from launcher import entry
from launcher.cli import arguments
from launcher.cli.arguments import JSON, Argument

_OPTIONS: tuple[Argument, ...] = (
    (["--grader"], {"metavar": "YAML", "required": True, "help": "see docs/graders.md"}),
    (["--answer"], {"metavar": "FIELD", "help": "where a line has its answer, if not in sample"}),
    (["--labels"], {"metavar": "FIELD", "help": "what people say of it: tell the agreement"}),
    (
        ["-o", "--out"],
        {"metavar": "JSONL", "help": "write each grade there; the same command goes on from it"},
    ),
    JSON,
    (["--at-least"], {"type": float, "metavar": "SCORE", "help": "exit 3 below this mean"}),
    (["--judge-url"], {"metavar": "URL", "help": "the endpoint of graders that ask a model"}),
    (
        ["--sandbox"],
        {"choices": ("auto", "strict"), "help": "strict: run no code without namespaces (auto)"},
    ),
    (["--timeout"], {"type": float, "metavar": "S", "help": "seconds for code on an answer (10)"}),
    (["--workers"], {"type": int, "metavar": "N", "help": "answers graded at a time"}),
)


def grade(words: list[str]) -> int:
    """Grade the answers of a JSON Lines file."""
    file: Argument = (["file"], {"metavar": "FILE", "help": "JSON Lines: items and samples"})
    parsed = arguments.plain("grade", words, file, *_OPTIONS)
    options = arguments.words(parsed, *(name for name in vars(parsed) if name != "file"))
    entry.become("launcher.scoring.grade", os.path.abspath(parsed.file), *options)
