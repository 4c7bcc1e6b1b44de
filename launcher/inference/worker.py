"""`python -m launcher.inference.worker RUN_DIR`: a model that answers over its standard streams.

A line on stdin is a request in JSON: `{id, project, messages, tools | prompt, max_tokens,
temperature, top_p, seed, stop, n, max_calls, presence_penalty, frequency_penalty, logit_bias,
logprobs, format, call}`, or `{cancel: id}` that withdraws one; the end of stdin ends the process.
`logprobs` is how many of the likeliest tokens are told beside each, null for none; `format` and
`call` are those of `launcher.inference.constraints`. Lines on stdout: `{ready: true}` once the
model is open; then `{id, begun: true}` of a request; of each answer `{id, index, text, logprobs}`
piece by piece, `{id, index, calls: [{name, arguments}]}` if it calls tools, and `{id, index,
finish_reason, prompt_tokens, completion_tokens}`; or `{id, error, code, param}` of a request.
Requests that wait are answered together: those of the projects in turn, of each the first first.
"""

from __future__ import annotations

import argparse
import sys
import threading
import traceback
from typing import Any

from launcher.config.compose import compose
from launcher.core.rundir import RunDir
from launcher.inference.batching import Ask, reply
from launcher.inference.command import exit_code_of
from launcher.inference.inbox import Inbox, answers_to_server
from launcher.inference.loading import open_base, open_speaker, require_speaks
from launcher.inference.requests import FAILED, Write
from launcher.inference.speaker import Speaker

#: What one batch may hold: answers, and tokens of prompts and answers with their padding.
MAX_ROWS = 16
MAX_TOKENS = 32768


class Answering(Inbox):
    """Answers by a model in this process, requests that wait together."""

    def __init__(self, speaker: Speaker, longest: int, write: Write) -> None:
        super().__init__(longest, write)
        self._speaker = speaker

    def _speaker_of(self, request: dict[str, Any]) -> Speaker:
        return self._speaker

    def work(self) -> None:
        """Answer until `listen` has come to its end."""
        first = self._next(wait=True)
        while first:
            batch = first
            while (following := self._next(wait=False)) and _fits(batch | following):
                batch |= following
            self._answer(batch)
            first = following or self._next(wait=True)

    def _answer(self, batch: dict[str, list[Ask]]) -> None:
        for name in batch:
            self._write({"id": name, "begun": True})
        try:
            reply(self._speaker, [ask for asks in batch.values() for ask in asks])
        except Exception:  # out of memory, for one: a smaller request may still do
            traceback.print_exc()
            for name in batch:
                self._refuse(name, "failed", FAILED)
        self._open.difference_update(batch)


def _fits(batch: dict[str, list[Ask]]) -> bool:
    asks = [ask for asks in batch.values() for ask in asks]
    prompt = max(len(ask.tokens) for ask in asks)
    answer = max(ask.decoding.max_new_tokens for ask in asks)
    return len(asks) <= MAX_ROWS and len(asks) * (prompt + answer) <= MAX_TOKENS


def _open_model(options: argparse.Namespace) -> Speaker:
    if options.overrides is not None:
        return open_base(compose.compose(options.overrides, options.config_dir))
    run = RunDir(options.run).require()
    require_speaks(run)
    return open_speaker(run, checkpoint=options.checkpoint)


def main(argv: list[str]) -> int:
    """Exit code of `launcher.core.errors.ExitCode`; what went wrong is said on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m launcher.inference.worker", description=__doc__
    )
    parser.add_argument("run", nargs="?")
    parser.add_argument("--checkpoint", type=int, metavar="STEP", help="default: the export")
    parser.add_argument("--max-tokens", type=int, default=4096, help="longest answer")
    parser.add_argument(
        "--overrides", nargs="*", metavar="KEY=VALUE", help="the base of such a run instead"
    )
    parser.add_argument("--config-dir", action="append", default=[], metavar="DIR")
    options = parser.parse_args(argv)
    if (options.run is None) == (options.overrides is None):
        parser.error("name a run, or the overrides of a base")
    write = answers_to_server()

    def work() -> None:
        answering = Answering(_open_model(options), options.max_tokens, write)
        write({"ready": True})
        threading.Thread(target=answering.listen, args=(sys.stdin,), daemon=True).start()
        answering.work()

    return exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
