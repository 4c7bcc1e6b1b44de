"""`python -m launcher.inference.offline PROMPTS FOLDER MODEL...`: models' answers to prompts."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from launcher.config.schema import ModelConfig
from launcher.core.errors import DataError
from launcher.core.files import write_atomic
from launcher.core.rundir import find_run
from launcher.data.chat.turn_ends import by_template
from launcher.data.formats.base import BadRecord
from launcher.data.tokenizer import load_tokenizer
from launcher.evals.decoding import Decoding
from launcher.evals.generation import fit, generate_records
from launcher.evals.records import TokenizedPrompt
from launcher.inference.command import exit_code_of, note
from launcher.inference.loading import open_speaker
from launcher.inference.speaker import Speaker, quiet
from launcher.model.load import DTYPES
from launcher.model.rebuild import load_base


def open_model(name: str) -> Speaker:
    """The model that a name of `launcher compare` stands for: RUN, RUN:base, RUN:STEP or a FOLDER.

    Raises `ConfigError` if there is no such run or checkpoint.
    """
    if Path(name, "config.json").is_file():
        return _open_folder(Path(name))
    run, _, part = name.partition(":")
    step = int(part) if part.isdecimal() else None
    return open_speaker(find_run(run), checkpoint=step, base=part == "base")


def _open_folder(folder: Path) -> Speaker:
    quiet()
    config = ModelConfig(name=str(folder))
    tokenizer = load_tokenizer(config)
    has_gpu = torch.cuda.is_available()
    dtype = DTYPES["bf16" if has_gpu else "fp32"]
    model = load_base(config, folder, dtype, len(tokenizer))
    model = model.to("cuda") if has_gpu else model
    return Speaker(model, tokenizer, None, pairs=True, taught=by_template(tokenizer))


def answers(speaker: Speaker, asked: list[dict[str, Any]], max_new_tokens: int) -> list[str]:
    """The likeliest answer to each record's `messages`, in their order.

    Says how many ended only at `max_new_tokens`, and to how many prompts the model saw an end only.
    """
    prompts = [
        TokenizedPrompt(number, _tokens(speaker, record), "", record["where"])
        for number, record in enumerate(asked)
    ]
    model, tokenizer = speaker.model, speaker.tokenizer
    decoding, stops = Decoding(max_new_tokens), speaker.stop_tokens
    made = generate_records(prompts, model, tokenizer, decoding, stop_tokens=stops)
    cut = sum(generation.cut for generation in made)
    if cut:
        note(f"{cut:,} of {len(made):,} answers are cut at --max-new-tokens {max_new_tokens:,}")
    short = sum(len(fit(list(p.tokens), model, max_new_tokens)) < len(p.tokens) for p in prompts)
    if short:
        note(f"{short:,} of {len(prompts):,} prompts are too long: the model saw only their end")
    by_number = {generation.id: generation.answer for generation in made}
    return [by_number[number] for number in range(len(asked))]


def _tokens(speaker: Speaker, record: dict[str, Any]) -> list[int]:
    messages = record["messages"]
    if speaker.tokenizer.chat_template:
        try:
            return speaker.tokens(messages, record.get("template_options"))
        except BadRecord as error:
            raise DataError(
                error.found,
                where=record["where"],
                hint="change its roles and their order to those that the model was made for",
            ) from error
    if len(messages) > 1:
        raise DataError(
            "a conversation, but the model's tokenizer has no chat template",
            where=record["where"],
            hint="ask such a model with `prompt`",
        )
    try:
        return speaker.plain_tokens(messages[0]["content"])
    except BadRecord as error:
        raise DataError(error.found, where=record["where"], hint=error.hint) from error


def main(argv: list[str]) -> int:
    """Exit code of `launcher.core.errors.ExitCode`; FOLDER/0.jsonl holds the first model's answers.

    PROMPTS has lines of messages, prompt (what people read), where and template_options.
    """
    parser = argparse.ArgumentParser(prog="launcher ab new", description=__doc__)
    parser.add_argument("prompts", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    options = parser.parse_args(argv)

    def work() -> None:
        asked = [
            json.loads(line) for line in options.prompts.read_text(encoding="utf-8").splitlines()
        ]
        for number, name in enumerate(options.models):
            note(f"{name} answers {len(asked):,} prompts")
            made = answers(open_model(name), asked, options.max_new_tokens)
            lines = [
                json.dumps({"prompt": record["prompt"], "answer": answer}) + "\n"
                for record, answer in zip(asked, made, strict=True)
            ]
            write_atomic(options.folder / f"{number}.jsonl", "".join(lines))

    return exit_code_of(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
