"""Verbs of A/B tests: studies judged by people, and traffic split between two models."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.cli import arguments
from launcher.cli.arguments import Argument
from launcher.core.errors import ConfigError, ExitCode

if TYPE_CHECKING:
    from launcher.ab.study import Study

PORT = 8765
_STUDY: Argument = (["study"], {"type": Path, "metavar": "STUDY", "help": "folder of a study"})
_URL: Argument = (
    ["--url"],
    {"default": f"http://127.0.0.1:{PORT}", "help": "where judges reach `ab serve`: %(default)s"},
)


def new(words: list[str]) -> int:
    """Make a blind study of two models' answers; prints a link for each judge."""
    name = "RUN, RUN:base, RUN:STEP, a Hugging Face FOLDER, or a FILE of answers"
    parsed = arguments.plain(
        "ab new",
        words,
        (["a"], {"metavar": "A", "help": name}),
        (["b"], {"metavar": "B", "help": "the same; the verdict is on B"}),
        (["--data"], {"type": Path, "metavar": "FILE", "help": "prompts, one JSON line each"}),
        (["-o", "--out"], {"type": Path, "required": True, "metavar": "STUDY"}),
        (
            ["--judges"],
            {"type": _names, "default": [], "metavar": "NAMES", "help": "alice,bob: a link each"},
        ),
        _URL,
        (
            ["--question"],
            {"default": "Which answer is better?", "help": "what judges are asked: %(default)s"},
        ),
        (
            ["--max-new-tokens"],
            {"type": _count, "default": 256, "metavar": "N", "help": "longest answer: %(default)s"},
        ),
    )
    from launcher.ab.preparation import make

    study, same = make(
        (parsed.a, parsed.b),
        parsed.data,
        parsed.out,
        question=parsed.question,
        max_new_tokens=parsed.max_new_tokens,
    )
    if same:
        print(f"{same:,} prompts are left out: both answers are the same", file=sys.stderr)
    _invite(study, parsed.judges, parsed.url)
    print(f"study    {parsed.out}\nnext     launcher ab serve {parsed.out}", file=sys.stderr)
    return ExitCode.ok


def judges(words: list[str]) -> int:
    """Print a link for each judge; a judge's earlier link ends, the votes stay."""
    who: Argument = (["names"], {"type": _names, "metavar": "NAMES", "help": "such as alice,bob"})
    parsed = arguments.plain("ab judges", words, _STUDY, who, _URL)
    from launcher.ab.study import Study

    _invite(Study(parsed.study).check(), parsed.names, parsed.url)
    return ExitCode.ok


def serve(words: list[str]) -> int:
    """Serve the page on which judges vote, until Ctrl-C."""
    parsed = arguments.plain("ab serve", words, _STUDY, *arguments.listen(PORT))
    from launcher.ab.study import Study

    study = Study(parsed.study).check()
    arguments.need_server("launcher ab")
    from launcher.ab import server
    from launcher.core import asgi

    return asgi.run(server.create_app(study), parsed.host, parsed.port)


def result(words: list[str]) -> int:
    """Print what people prefer, and how sure that is."""
    parsed = arguments.plain(
        "ab result",
        words,
        (["study"], {"type": Path, "metavar": "STUDY", "help": "a study, or a router's --db"}),
        (
            ["--require"],
            {
                "choices": ("better", "not-worse"),
                "help": "exit 3 unless B is better, or not worse, than A",
            },
        ),
        arguments.JSON,
    )
    from launcher.ab import words as said
    from launcher.ab.result import REQUIRED, result

    made = result(parsed.study)
    print(arguments.as_json(made) if parsed.json else said.told(made))
    refused = made["verdict"] in REQUIRED.get(parsed.require, ())
    return ExitCode.data if refused else ExitCode.ok


def route(words: list[str]) -> int:
    """Split requests between two OpenAI-compatible endpoints, until Ctrl-C."""
    url = "base URL of an OpenAI-compatible endpoint, such as http://host:8000/v1"
    parsed = arguments.plain(
        "ab route",
        words,
        (["--a"], {"required": True, "metavar": "URL", "help": url}),
        (["--b"], {"required": True, "metavar": "URL", "help": "the same; the verdict is on B"}),
        (["--db"], {"type": Path, "required": True, "metavar": "FILE", "help": "what is counted"}),
        (
            ["--share"],
            {
                "type": _share,
                "default": 0.5,
                "metavar": "P",
                "help": "users who get B: %(default)s",
            },
        ),
        (["--model"], {"default": "ab", "metavar": "NAME", "help": "what users call it: ab"}),
        *arguments.listen(PORT + 1),
    )
    arguments.need_server("launcher ab")
    from launcher.ab import router
    from launcher.ab.traffic import Traffic
    from launcher.core import asgi

    router.require_url(parsed.a, where="--a")
    router.require_url(parsed.b, where="--b")
    traffic = Traffic.open(parsed.db, (parsed.a, parsed.b), parsed.share)
    app = router.create_app(traffic, {"a": parsed.a, "b": parsed.b}, parsed.model)
    return asgi.run(app, parsed.host, parsed.port)


def _invite(study: Study, names: list[str], url: str) -> None:
    width = max(map(len, names), default=0)
    for name in names:
        # Behind "#", so that the browser sends the token to no server, log or other site.
        print(f"{name:<{width}}  {url.rstrip('/')}/#{study.invite(name)}")
    if names:
        print("each link is shown this once: only its hash is kept", file=sys.stderr)


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) < len(names):
        found = f"{text!r} is no list of different names"
        raise ConfigError(found, where="judges", hint="such as alice,bob")
    return names


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        hint = "a number of tokens, 1 or more"
        raise ConfigError(f"{text} is too small", where="--max-new-tokens", hint=hint)
    return count


def _share(text: str) -> float:
    share = float(text)
    if not 0 < share < 1:
        hint = "a share between 0 and 1, such as 0.5 or 0.1"
        raise ConfigError(f"{text} is no share", where="--share", hint=hint)
    return share
