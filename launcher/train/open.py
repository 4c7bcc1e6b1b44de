"""Opening the model that a run has made: its export, one of its checkpoints, or its base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from launcher.config import compose
from launcher.data.tokenizer import load_tokenizer
from launcher.model.load import DTYPES
from launcher.model.rebuild import base_folder, load_base, rebuild
from launcher.model.verify import open_export
from launcher.rundir import RunDir, read_json
from launcher.train.command import note
from launcher.train.export import find_checkpoint, trained_model
from launcher.train.inference import Speaker, quiet


def open_speaker(run: RunDir, *, checkpoint: int | None = None, base: bool = False) -> Speaker:
    """The run's model on the GPU if there is one: the export, else the newest checkpoint.

    `checkpoint` names a step instead, `base` the model before training. Raises `ConfigError` if the
    run has no such checkpoint.
    """
    quiet()
    config = compose.load(run.config)
    folder = base_folder(config.model)
    tokenizer = load_tokenizer(config.model)
    dtype = DTYPES[read_json(run.plan, {}).get("dtype", "fp32")]
    model: Any
    if base:
        model = load_base(config.model, folder, dtype, len(tokenizer))
    elif checkpoint is None and _has_export(run):
        trust = config.model.trust_remote_code
        model = open_export(
            run.export, folder, dtype=dtype, num_tokens=len(tokenizer), trust_remote_code=trust
        )
    else:
        trained = trained_model(run, config, find_checkpoint(run, checkpoint, note))
        model = rebuild(config, trained.weights, folder, dtype, trained.num_tokens)
    if torch.cuda.is_available():
        model = model.to("cuda")
    return Speaker(model, tokenizer, config.data.system, _trained_on_pairs(run))


def _trained_on_pairs(run: RunDir) -> bool:
    folder = read_json(run.data, {}).get("train")
    return bool(folder) and read_json(Path(folder) / "index.json", {}).get("format") != "text"


def _has_export(run: RunDir) -> bool:
    return any((run.export / name).is_file() for name in ("config.json", "adapter_config.json"))
