"""`launcher VERB ...`: find the verb, run it, turn errors into exit codes."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from launcher import __version__, entry
from launcher.core import registry, runtime, streams
from launcher.core.errors import ConfigError, ExitCode, LauncherError, did_you_mean

#: verb -> (what --help says, function from the words after the verb to the exit code).
VERBS = {
    "train": ("fine-tune: compose, freeze, launch, follow to the end", "launcher.cli.runs:train"),
    "submit": ("the same, but return at once and print the run id", "launcher.cli.runs:submit"),
    "plan": ("what would run: batch, steps, memory of a rank", "launcher.cli.configs:plan"),
    "config": (
        "print the resolved config, or where a value comes from",
        "launcher.cli.configs:config",
    ),
    "data prepare": ("tokenise into the cache, without a run", "launcher.cli.data:prepare"),
    "data show": ("show in colour what is trained on", "launcher.cli.data:show"),
    "data report": (
        "what is wrong with the data: a verdict per rule, a page",
        "launcher.cli.data:report",
    ),
    "data clean": ("write a cleaned copy of the training data", "launcher.cli.data:clean"),
    "status": ("state of one run, or of all", "launcher.cli.runs:status"),
    "logs": ("print or follow the log of a rank", "launcher.cli.runs:logs"),
    "cancel": ("stop a run for good, with a checkpoint", "launcher.cli.runs:cancel"),
    "join": ("bring this host into a run with launch=torchrun", "launcher.cli.runs:join"),
    "resume": ("go on from the last checkpoint, follow to the end", "launcher.cli.runs:resume"),
    "compare": (
        "models against the first of them: differences, intervals, verdict",
        "launcher.cli.models:compare",
    ),
    "grade": (
        "score answers in a file; agreement with people",
        "launcher.cli.grade:grade",
    ),
    "eval": ("score the tuned model, or the base", "launcher.cli.models:evaluate"),
    "report": ("write the HTML page of a run", "launcher.cli.models:report"),
    "export": ("write a Hugging Face folder", "launcher.cli.models:export"),
    "generate": ("answer prompts with the tuned model", "launcher.cli.models:generate"),
    "chat": ("talk to the tuned model", "launcher.cli.models:chat"),
    "doctor": (
        "check machine, cluster, storage and services; say what to do",
        "launcher.cli.doctor:doctor",
    ),
    "sweep status": ("state and metric of a sweep's trials", "launcher.cli.sweeps:status"),
    "sweep best": ("overrides of a sweep's best trial", "launcher.cli.sweeps:best"),
    "sweep report": ("write the HTML page of a sweep", "launcher.cli.sweeps:report"),
    "sweep wandb": ("write a W&B sweep file with its space", "launcher.cli.sweeps:wandb"),
    "sweep resume": ("go on with a sweep where it stopped", "launcher.cli.sweeps:resume"),
    "sweep cancel": ("stop a sweep and all its trials", "launcher.cli.sweeps:cancel"),
    "ab new": (
        "make a blind study of two models' answers",
        "launcher.cli.ab:new",
    ),
    "ab judges": ("make links for judges of a study", "launcher.cli.ab:judges"),
    "ab serve": ("serve the page on which judges vote", "launcher.cli.ab:serve"),
    "ab result": (
        "what people prefer: win rate, confidence, verdict",
        "launcher.cli.ab:result",
    ),
    "ab route": (
        "split requests between two endpoints and count feedback",
        "launcher.cli.ab:route",
    ),
    "serve": ("OpenAI-compatible fine-tuning jobs, over HTTP", "launcher.cli.serve:serve"),
    "serve keys create": ("make an API key; it is shown this once", "launcher.cli.serve:create"),
    "serve keys list": ("whose API keys there are, and their ids", "launcher.cli.serve:index"),
    "serve keys revoke": ("an API key is of no use from now on", "launcher.cli.serve:revoke"),
    "openai pull": (
        "take an account out of OpenAI: files, jobs, results, evals",
        "launcher.cli.openai:pull",
    ),
    "openai replay": (
        "run the jobs of a pulled account again, here",
        "launcher.cli.openai:replay",
    ),
    "openai verify": (
        "models against answers that the old one gave: is it good enough?",
        "launcher.cli.openai:verify",
    ),
    "completion": ("print a shell completion script", "launcher.cli.configs:completion"),
}

#: Verbs that change nothing: a reader who has seen enough of them has all that he wanted.
_LOOKING = (
    *("help", "plan", "config", "status", "logs", "completion"),
    *("sweep status", "sweep best", "sweep wandb", "ab result", "serve keys list"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit code."""
    if argv is None:
        streams.open_closed_streams()
        runtime.take_current_folder_off_the_path()
        entry.become_utf8()
        entry.end_by_signals()
    words = list(sys.argv[1:] if argv is None else argv)
    entry.make_output_safe()
    try:
        return _reported(words)
    except BrokenPipeError:  # the reader, `head` for one, has had enough
        streams.discard(sys.stdout, sys.stderr)
        # What only looks has no more to do; other work has ended before its end.
        return int(ExitCode.ok if _only_looks(words) else ExitCode.interrupted)


def _only_looks(words: list[str]) -> bool:
    if not words or words[0].startswith("-") or not {"-h", "--help"}.isdisjoint(words):
        return True
    return words[0] in _LOOKING or " ".join(words[:2]) in _LOOKING


def _reported(words: list[str]) -> int:
    try:
        code = _flushed(words)
    except BrokenPipeError:
        raise
    except LauncherError as error:
        streams.complain(*error.problems)
        return int(error.exit_code)
    except KeyboardInterrupt as error:
        said = str(error) or "Ctrl-C"
        if said not in signal.Signals.__members__ and not _only_looks(words):  # those are said
            streams.remark(said)
        return int(ExitCode.interrupted)
    except Exception as error:
        known = entry.trouble(error)
        if known is not None:
            streams.complain(known)
            return int(known.exit_code)
        import traceback

        traceback.print_exc()
        print(
            f"This is a defect of launcher {__version__}: please report it with the lines above.",
            file=sys.stderr,
        )
        return int(ExitCode.internal)
    return code


def _flushed(words: list[str]) -> int:
    """The verb's exit code, once all that it has printed is written."""
    try:
        code = _dispatch(words)
    except SystemExit:  # of argparse, with or without a page of help
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return ExitCode.ok if words else ExitCode.usage
    if words[0] == "--version":
        print(f"launcher {__version__}")
        return ExitCode.ok
    for count in (3, 2, 1):
        verb = " ".join(words[:count])
        if verb in VERBS:
            return int(registry.load(VERBS[verb][1])(words[count:]))
    verb = " ".join(words[:2]) if words[0] in ("ab", "data", "openai", "sweep") else words[0]
    raise ConfigError(
        f"there is no verb {verb!r}",
        where="command line",
        hint=did_you_mean(verb, VERBS),
    )


def _overview() -> str:
    width = max(map(len, VERBS)) + 2
    verbs = "\n".join(f"  {verb:<{width}}{text}" for verb, (text, _) in VERBS.items())
    return f"""usage: launcher VERB [OVERRIDES | RUN] [options]

Fine-tune language models: `launcher train experiment=quickstart`.

{verbs}

Overrides are GROUP=OPTION or KEY=VALUE; `launcher train --help` lists them.
`launcher VERB --help` says what a verb takes.

Exit codes: 0 done, 1 internal, 2 usage or config, 3 data, 4 out of memory, 5 diverged, 6 hang,
7 storage, 75 stopped with a checkpoint (`launcher resume` goes on), 130 ended at once."""
