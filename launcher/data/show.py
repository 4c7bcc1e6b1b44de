"""Look at what is trained on: `python -m launcher.data.show RUN_DIR|CACHE_FOLDER [--count 3]`."""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Iterator
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from launcher.config.schema import ModelConfig
from launcher.core import files, rundir, runtime
from launcher.core.errors import DataError, ExitCode, LauncherError
from launcher.data.cache import INDEX, JoinedCache, Per, TokenCache, is_asked, shown
from launcher.data.chat.literals import Literals
from launcher.data.chat.masking import kinds_of_bits
from launcher.data.prepare.split import say, summary
from launcher.data.tokenizer import hide_torch, load_tokenizer

#: Control characters but tab and newline: data must not steer the terminal.
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_COLORS = ("\x1b[30;42m", "\x1b[0m")
_BRACKETS = ("[[", "]]")


def render(
    cache: TokenCache | JoinedCache, record: int, tokenizer: Any, marks: tuple[str, str]
) -> str:
    """One record as text: a line of origin and numbers, then the tokens, with targets in `marks`,
    each document for itself where there are several."""
    tokens, targets = cache.record(record)
    share = float(targets.mean()) if len(targets) else 0.0
    head = f"{cache.where(record)}  record {record}, {len(tokens):,} tokens, {share:.1%} targets"
    for name in (name for name, column in cache.columns.items() if column.is_json):
        head += f", {name} {shown(cache.value(name, record))}"
    for name, column in cache.columns.items():
        if column.per is Per.document and not column.is_json:
            values = [f"{value:g}" for value in np.ravel(cache.column(name, record)).tolist()]
            head += f", {name} {' and '.join(dict.fromkeys(values))}"
    if is_asked(cache, record):
        head += ", no answer: the last token stands for it"
    if bits := cache.left_out(record):
        head += f"\nthe chat template leaves out of it: {', '.join(kinds_of_bits(bits))}"
    if spelled := Literals(tokenizer).spelled(tokens.tolist()):
        told = ", ".join(f"{name} ({count})" for name, count in spelled.items())
        head += f"\nspecial tokens that are text in it: {told}"
    lengths, names = cache.documents(record), cache.parts[0].index.documents
    if len(lengths) < 2:
        return f"{head}\n{_painted(tokens, targets, tokenizer, marks)}"
    shown_texts = []
    for number, (start, length) in enumerate(zip(accumulate([0, *lengths]), lengths, strict=False)):
        part = slice(start, start + length)
        name = names[number] if len(names) == len(lengths) else f"document {number + 1}"
        title = f"--- {name}: {length:,} tokens, {int(targets[part].sum()):,} targets"
        text = _painted(tokens[part], targets[part], tokenizer, marks)
        shown_texts.append(f"{title}\n{text}")
    return "\n".join([head, *shown_texts])


def _painted(
    tokens: NDArray[np.int32], targets: NDArray[np.uint8], tokenizer: Any, marks: tuple[str, str]
) -> str:
    """The text of tokens, with targets in `marks`."""
    pieces = []
    for is_target, text in _runs(tokens.tolist(), targets.tolist(), tokenizer):
        plain = _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
        # A terminal paints the rest of a line in the colour that a newline leaves open.
        lines = [marks[0] + line + marks[1] if line else "" for line in plain.split("\n")]
        if marks == _BRACKETS:
            lines = [marks[0] + plain + marks[1]]
        pieces.append("\n".join(lines) if is_target else plain)
    return "".join(pieces)


def _runs(tokens: list[int], targets: list[int], tokenizer: Any) -> Iterator[tuple[bool, str]]:
    """Text of each stretch of equal flags. Prefixes are decoded: pieces alone would lose spaces."""
    begin, before = 0, ""
    for flag, run in groupby(targets):
        begin += len(list(run))
        text = tokenizer.decode(tokens[:begin], clean_up_tokenization_spaces=False)
        yield bool(flag), text[len(before) :]
        before = text


def _open(path: Path, split: str) -> tuple[TokenCache | JoinedCache, ModelConfig]:
    if (path / INDEX).is_file():
        cache = TokenCache.open(path)
        return cache, ModelConfig(name=cache.index.tokenizer)
    from launcher.config.compose import compose

    run = rundir.RunDir(path).require()
    folders = files.read_json(run.data, {})
    if split not in folders:
        options = [] if split == "train" else ["--split", split]
        words = shlex.join(["launcher", "data", "show", str(run.config), *options])
        raise DataError(
            f"there is no prepared {split} split",
            where=str(run),
            hint=f"`{words}` prepares it first",
        )
    if not folders[split]:
        hint = "hold records out with data.validation=FILE or data.validation_share=0.1"
        raise DataError("no record is held out", where=f"data.{split}", hint=hint)
    return TokenCache.open(folders[split]), compose.load(run.config, runs_code=False).model


def main(arguments: list[str]) -> int:
    """Print samples of a prepared split. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="launcher data show", description=__doc__)
    parser.add_argument("path", type=Path, help="run folder, or folder of a prepared split")
    parser.add_argument("--count", type=int, default=3, help="number of records (default: 3)")
    parser.add_argument("--split", choices=("train", "validation"), default="train")
    options = parser.parse_args(arguments)
    hide_torch()
    marks = _COLORS if runtime.wants_color(sys.stdout) else _BRACKETS
    try:
        cache, model = _open(options.path, options.split)
        tokenizer = load_tokenizer(model)
        count = min(options.count, len(cache))
        for i in range(count):
            print(render(cache, i * len(cache) // count, tokenizer, marks), end="\n\n")
        print(summary(options.split, cache.folder, packing=True))
        print(f"What is learned is {'coloured' if marks == _COLORS else 'in [[...]]'}.")
    except LauncherError as error:
        say(f"error: {error}")
        return error.exit_code
    return ExitCode.ok


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
