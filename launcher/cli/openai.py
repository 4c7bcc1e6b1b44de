"""Verbs for those who leave OpenAI: take out what is there, run its jobs here, compare."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.cli import arguments
from launcher.cli.arguments import JSON
from launcher.core import runtime, streams
from launcher.core.errors import ConfigError, ExitCode, StorageError

if TYPE_CHECKING:
    from launcher.account.layout import Folder

_OPENAI = "https://api.openai.com/v1"
_KEY = "OPENAI_API_KEY"


def pull(words: list[str]) -> int:
    """Read an account into a folder; the same command goes on after a kill."""
    parsed = arguments.plain(
        "openai pull",
        words,
        (["folder"], {"type": Path, "metavar": "FOLDER", "help": "where to; made if need be"}),
        (
            ["--base-url"],
            {
                "default": runtime.openai_url() or _OPENAI,
                "metavar": "URL",
                "help": "default: OPENAI_BASE_URL, else OpenAI's",
            },
        ),
        (
            ["--connections"],
            {"type": int, "default": 8, "metavar": "N", "help": "requests at a time: %(default)s"},
        ),
        JSON,
    )
    if not 1 <= parsed.connections <= 64:
        hint = "a number from 1 to 64"
        raise ConfigError(f"{parsed.connections} will not do", where="--connections", hint=hint)
    key = runtime.secret(_KEY)
    if key is None:
        hint = f"export {_KEY}=..., a key of the account; it is written nowhere"
        raise ConfigError("the key is not set", where=_KEY, hint=hint)
    from launcher.account import manifest, page
    from launcher.account.connection import Connection
    from launcher.account.layout import Folder
    from launcher.account.pull import Pull
    from launcher.core.files import write_json

    folder = Folder(parsed.folder)
    scope = runtime.openai_scope()
    connection = Connection(parsed.base_url, key, headers=scope, say=streams.remark)
    with folder.lock():
        reading = Pull(connection, folder, threads=parsed.connections, say=streams.remark)
        try:
            found = reading.run()
        except KeyboardInterrupt:
            raise KeyboardInterrupt("stopped: the same command goes on") from None
        made = manifest.make(folder, connection.base_url, found)
        write_json(folder.manifest, made)
        shown = page.build(folder, made)
    print(arguments.as_json(made) if parsed.json else manifest.told(made))
    print(f"page     {shown}", file=sys.stderr)
    return ExitCode.ok if made["complete"] else ExitCode.data


def replay(words: list[str]) -> int:
    """Run the jobs of a pulled account again; the same command goes on after a kill."""
    state: dict[str, Any] = {"action": "append", "default": [], "metavar": "STATE"}
    parsed = arguments.plain(
        "openai replay",
        words,
        (["folder"], {"type": Path, "metavar": "FOLDER", "help": "what `openai pull` has filled"}),
        (
            ["overrides"],
            {"nargs": "*", "metavar": "OVERRIDE", "help": "for all runs, such as optim.beta2=0.95"},
        ),
        (
            ["--to"],
            {
                "type": Path,
                "required": True,
                "metavar": "DIR",
                "help": "a service's folder; made if need be",
            },
        ),
        (
            ["--map"],
            {"type": Path, "metavar": "YAML", "help": "what stands for OpenAI's models"},
        ),
        (
            ["--dry-run"],
            {"action": "store_true", "help": "print what would run; make and start nothing"},
        ),
        (
            ["--jobs"],
            {"type": _ids, "metavar": "IDS", "help": "only these, and those they start from"},
        ),
        (
            ["--also"],
            {**state, "choices": ("failed", "cancelled"), "help": "jobs that ended so there"},
        ),
        (["--again"], {"action": "store_true", "help": "begin jobs anew that failed here"}),
        (
            ["--project"],
            {"default": "default", "help": "whose jobs and models: %(default)s"},
        ),
        JSON,
        intermixed=True,
    )
    arguments.need_server("launcher openai replay")
    from launcher.account import mapping, prospect, succession
    from launcher.account import replay as replays
    from launcher.account.layout import Folder

    folder, out = Folder(parsed.folder).require(), parsed.to
    found, proposed = mapping.settings(folder, out, parsed.map, parsed.overrides, parsed.project)
    jobs, left = succession.settle(folder, found.site, also=parsed.also, only=parsed.jobs)
    if proposed is not None:
        print(f"proposed {proposed}: look at what stands for which model", file=sys.stderr)
    if proposed is not None and not parsed.dry_run:
        raise ConfigError(
            f"what stands for OpenAI's models is not settled: a proposal is in {proposed}",
            where="--map",
            hint="change it as you like, and run the same command again",
        )
    plan = prospect.planned(found, jobs, out, parsed.project)
    _show_plan(folder, plan, left, out, parsed.project)
    if parsed.dry_run:
        about = {"jobs": plan, "left_out": [{"id": one.id, "why": one.why} for one in left]}
        print(arguments.as_json(about) if parsed.json else prospect.told_plan(plan, left))
        return ExitCode.ok
    print(prospect.told_plan(plan, left), file=sys.stderr)
    prospect.require_all(plan)
    with replays.alone(out):
        told = functools.partial(_show_plan, folder)
        work = replays.Replay(found, jobs, left, out, parsed.project, streams.remark, told)
        if parsed.again:
            work.forget()
        try:
            made = work.run()
        except KeyboardInterrupt:
            said = "stopped; what runs goes on, and the same command follows it"
            raise KeyboardInterrupt(said) from None
    print(arguments.as_json(made) if parsed.json else replays.told_result(made))
    are_good = all(row["state"] == "succeeded" for row in made["jobs"])
    return ExitCode.ok if are_good else ExitCode.data


def _show_plan(folder: Folder, *plan: Any) -> None:
    """Have the page of what was pulled show a plan, if there is one, and what became of it."""
    from launcher.account import page, prospect

    try:
        if plan:
            prospect.note(folder, *plan)
        page.refresh(folder)
    except StorageError as error:  # what is run does not need it
        streams.remark(f"warning: the page does not show this plan: {error}")


def _ids(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def verify(words: list[str]) -> int:
    """Compare models with answers that the old one gave; exit 3 unless all are good enough."""
    text = {"action": "append", "default": []}
    parsed = arguments.plain(
        "openai verify",
        words,
        (["folder"], {"type": Path, "metavar": "FOLDER", "help": "what `openai pull` has filled"}),
        (
            ["--model"],
            {
                **text,
                "required": True,
                "metavar": "MODEL",
                "help": "RUN, RUN:STEP, a Hugging Face FOLDER, or what `replay` has filled",
            },
        ),
        (
            ["--answers"],
            {
                "required": True,
                "metavar": "FILE",
                "help": "JSON Lines with what the old model answered, or the id of a pulled run"
                " of an eval",
            },
        ),
        (["--metric"], {**text, "metavar": "NAME", "help": "of answers, see docs/evaluate.md"}),
        (["--grader"], {**text, "metavar": "YAML", "help": "see docs/graders.md"}),
        (["--answer-pattern"], {"metavar": "REGEX", "help": "as eval.answer_pattern"}),
        (["--judge-url"], {"metavar": "URL", "help": "ask a judge, behind this endpoint"}),
        (["--judge-model"], {"metavar": "NAME", "help": "the judge's name there"}),
        (["--max-new-tokens"], {"type": int, "metavar": "N", "help": "longest answer (256)"}),
        (
            ["--require"],
            {
                "choices": ("better", "not-worse"),
                "default": "not-worse",
                "help": "exit 3 unless each model is that: %(default)s",
            },
        ),
        (
            ["--margin"],
            {
                "type": float,
                "metavar": "X",
                "help": "and has surely lost no more than this share of the old score",
            },
        ),
        JSON,
        (["--html"], {"metavar": "FILE", "help": "write a page: plots, changed answers"}),
    )
    if parsed.margin is not None and parsed.margin < 0:
        hint = "0.05 is a twentieth of the old score"
        raise ConfigError(f"{parsed.margin} is below 0", where="--margin", hint=hint)
    from launcher import entry
    from launcher.account import answers
    from launcher.account.layout import Folder
    from launcher.runs.start import refuse_in_rank

    refuse_in_rank("process")
    file = answers.file_of(Folder(parsed.folder).require(), parsed.answers)
    given = [name for name in vars(parsed) if name not in ("folder", "model", "answers")]
    sys.stdout.flush()
    entry.become(
        "launcher.scoring.verify", str(file), *parsed.model, *arguments.words(parsed, *given)
    )
