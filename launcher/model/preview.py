"""What the adapters of a run would be refused for: `python -m launcher.model.preview RUN`.

RUN is a folder with a config whose base model is on this machine. The model's structure is made
without memory for weights; what putting adapters into it would stop at is written to `preview.json`
in RUN, so that `launcher plan` can say so.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path

from transformers.utils import logging

from launcher.config.compose import compose
from launcher.config.derive import memory
from launcher.config.schema import Config, ModelConfig, TinyModelConfig
from launcher.config.schema.variants import PEFT_METHODS
from launcher.core.errors import ConfigError, ExitCode, Problem
from launcher.core.files import write_json
from launcher.core.rundir import RunDir
from launcher.model import tiny
from launcher.model.classifier import head_modules
from launcher.model.rebuild import meta_base
from launcher.model.sequence_head import SequenceHead

#: Where the answer is, in the folder of the run.
FILE = "preview.json"
#: Which classes there are, data tells; where the head stands does not depend on it.
_HEAD = SequenceHead(("a", "b"), "single_label_classification")


def problems(config: Config) -> Iterator[Problem]:
    """What is wrong with the adapters of `config` for its model; nothing if that is not here."""
    folder = _folder(config.model)
    head = _HEAD if config.objective.has_sequence_head else None
    if folder is None:
        return
    try:
        model = meta_base(config.model, folder, 0, head)
        fresh = None if head is None else head_modules(model)
    except Exception:  # code of others may need weights: what is wrong, loading tells
        return
    try:
        PEFT_METHODS.load(config.peft.name)(model, config.peft, fresh)
    except ConfigError as error:
        yield from error.problems


def _folder(model: ModelConfig) -> Path | None:
    if isinstance(model, TinyModelConfig):
        return tiny.ensure(replace(model, recipe=None))
    return memory.local_folder(model.name, model.revision) if model.name else None


def main(arguments: list[str]) -> int:
    """Write down what is wrong with the adapters of a run. Returns the exit code."""
    logging.set_verbosity_error()
    run = RunDir(arguments[0])
    found = problems(compose.load(run.config))
    write_json(run.path / FILE, [[int(ExitCode.usage), *astuple(problem)] for problem in found])
    return ExitCode.ok


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
