"""`python -m launcher.inference.chat RUN_DIR`: a conversation with its model in the terminal."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable

from launcher.config.compose import compose
from launcher.core.errors import ConfigError, DataError
from launcher.core.rundir import RunDir
from launcher.data.formats.base import BadRecord
from launcher.inference.command import exit_code_of, note
from launcher.inference.generate import add_sampling, sampling_of, show
from launcher.inference.loading import open_speaker
from launcher.inference.speaker import Message, Sampling, Speaker

HELP = "/reset forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C stops an answer."


def converse(
    speaker: Speaker, sampling: Sampling, system: str | None, ask: Callable[[], str]
) -> None:
    """Answer what `ask` returns, knowing the conversation so far, until /exit or EOFError."""
    beginning: list[Message] = [{"role": "system", "content": system}] if system else []
    messages = list(beginning)
    while True:
        try:
            said = ask().strip()
        except EOFError:
            return
        if said == "/exit":
            return
        if said == "/reset":
            messages = list(beginning)
            note("(forgotten)")
        elif said.startswith("/"):
            note(HELP)
        elif said:
            messages = _turn(speaker, sampling, messages, said)


def _turn(
    speaker: Speaker, sampling: Sampling, messages: list[Message], said: str
) -> list[Message]:
    asked = [*messages, {"role": "user", "content": said}]
    pieces: list[str] = []

    def collect(piece: str) -> None:
        pieces.append(piece)
        show(piece)

    try:
        speaker.answer(speaker.tokens(asked), sampling, collect)
    except KeyboardInterrupt as stop:
        # An answer stopped by Ctrl-C stays in the conversation as far as it came.
        if stop.args:
            raise
    except ConfigError as error:
        note(f"error: {error}")
        return messages
    except BadRecord as error:
        note(f"error: {DataError(error.found, where='prompt', hint=error.hint)}")
        return messages
    print(flush=True)
    return [*asked, {"role": "assistant", "content": "".join(pieces)}]


def main(argv: list[str]) -> int:
    """Exit code of `launcher.core.errors.ExitCode`."""
    parser = argparse.ArgumentParser(prog="launcher chat", description=__doc__)
    parser.add_argument("run")
    add_sampling(parser, temperature=0.7)
    options = parser.parse_args(argv)

    def work() -> None:
        run = RunDir(options.run).require()
        objective = compose.load(run.config).objective
        if objective.has_sequence_head:
            raise ConfigError(
                f"the run has trained {objective.model_kind}, which cannot speak",
                where=str(run),
                hint=f"{run.command('generate', anywhere=True)} prints what it says of texts",
            )
        speaker = open_speaker(run, checkpoint=options.checkpoint, base=options.base)
        if not speaker.tokenizer.chat_template:
            raise ConfigError(
                "the tokenizer has no chat template",
                where="model.chat_template",
                hint=f"{run.command('generate', anywhere=True)} continues plain text",
            )
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - gives input() line editing and a history
        note(HELP)
        prompt = "> " if sys.stdin.isatty() else ""
        converse(speaker, sampling_of(options), options.system, lambda: input(prompt))

    return exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
