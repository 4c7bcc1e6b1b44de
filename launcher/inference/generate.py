"""`python -m launcher.inference.generate RUN_DIR -p TEXT`: answers to prompts on stdout as they
come; of a classifier the label of each text and its probability, of a reward model the reward."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from launcher.config.compose import compose
from launcher.config.schema import Config
from launcher.core.errors import ConfigError, DataError
from launcher.core.rundir import RunDir
from launcher.data.formats.base import BadRecord
from launcher.inference.command import exit_code_of, note
from launcher.inference.loading import open_speaker
from launcher.inference.speaker import Sampling, Speaker
from launcher.objectives.base import of_run

if TYPE_CHECKING:
    from torch import Tensor


def add_sampling(parser: argparse.ArgumentParser, temperature: float) -> None:
    """Options of choosing tokens, shared with chat."""
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=temperature)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--checkpoint", type=int, metavar="STEP")
    parser.add_argument("--base", action="store_true", help="the model before training")
    parser.add_argument("--system", help="system message")


def sampling_of(options: argparse.Namespace) -> Sampling:
    """The parsed options as a `Sampling`; seeds the choice."""
    from transformers import set_seed

    set_seed(options.seed)
    return Sampling(options.max_new_tokens, options.temperature, options.top_p, options.top_k)


def prompt_tokens(speaker: Speaker, prompt: str, system: str | None, raw: bool) -> list[int]:
    """The prompt as training would have put it: a user's turn if there is a chat template.

    Raises `DataError` if it cannot be put so.
    """
    before = [{"role": "system", "content": system}] if system else []
    try:
        if raw:
            return speaker.raw_tokens(prompt)
        if not speaker.tokenizer.chat_template:
            return speaker.plain_tokens(prompt, system)
        return speaker.tokens([*before, {"role": "user", "content": prompt}])
    except BadRecord as error:
        raise DataError(error.found, where="prompt", hint=error.hint) from error


def main(argv: list[str]) -> int:
    """Exit code of `launcher.core.errors.ExitCode`; answers on stdout, apart by an empty line."""
    parser = argparse.ArgumentParser(prog="launcher generate", description=__doc__)
    parser.add_argument("run")
    parser.add_argument("-p", "--prompt", action="append", help="may be repeated; else stdin")
    parser.add_argument("--raw", action="store_true", help="continue the text as it stands")
    add_sampling(parser, temperature=0.0)
    options = parser.parse_args(argv)

    def work() -> None:
        run = RunDir(options.run).require()
        config = compose.load(run.config)
        speaks = not config.objective.has_sequence_head
        if not speaks:
            _refuse_sampling(parser, options, config.objective.model_kind)
        prompts = options.prompt or [sys.stdin.read().rstrip("\n")]
        if not speaks:
            _show_outputs(run, config, options, options.prompt or prompts[0].split("\n"))
            return
        speaker = open_speaker(run, checkpoint=options.checkpoint, base=options.base)
        sampling = sampling_of(options)
        for number, prompt in enumerate(prompts):
            if number:
                print()
            tokens = prompt_tokens(speaker, prompt, options.system, options.raw)
            speaker.answer(tokens, sampling, show)
            print(flush=True)

    return exit_code_of(work)


def _refuse_sampling(
    parser: argparse.ArgumentParser, options: argparse.Namespace, kind: str
) -> None:
    names = ("raw", "system", "max_new_tokens", "temperature", "top_p", "top_k", "seed")
    given = [name for name in names if getattr(options, name) != parser.get_default(name)]
    if given:
        raise ConfigError(
            f"the run has trained {kind}, which reads the text alone and makes no tokens",
            where=", ".join("--" + name.replace("_", "-") for name in given),
            hint="leave it out",
        )


def _show_outputs(
    run: RunDir, config: Config, options: argparse.Namespace, texts: list[str]
) -> None:
    """Of a model with a sequence head: a line a text."""
    require_texts(texts, "-p" if options.prompt else "stdin")
    objective = of_run(run, config)
    speaker = open_speaker(run, checkpoint=options.checkpoint, base=options.base)
    if options.checkpoint is not None and objective.about_end:
        note(f"note: {objective.about_end} is that of the run's end")
    line = objective.output_line(run, base=options.base, warn=note)
    documents = [objective.tokens_of(speaker.tokenizer, config, text) for text in texts]
    for outputs in _outputs(speaker.model, documents):
        print(line(outputs), flush=True)


def _outputs(model: Any, documents: Iterable[Sequence[int]]) -> Iterator[Tensor]:
    """Outputs of the sequence head for the tokens of each text: fp32 [outputs]."""
    import torch

    model.eval()
    for tokens in documents:
        ids = torch.tensor([tokens], device=model.device)
        with torch.inference_mode():
            outputs = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].float()
        yield outputs


def require_texts(texts: Sequence[str], where: str) -> None:
    """`DataError` for a text with nothing in it."""
    for number, text in enumerate(texts, start=1):
        if not text.strip():
            hint = "give a text a line on stdin, or one for each -p"
            raise DataError(f"text {number} is empty", where=where, hint=hint)


def show(piece: str) -> None:
    """A piece of an answer, at once."""
    print(piece, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
