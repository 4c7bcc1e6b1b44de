"""What a server needs of a model: its folder or adapter, and a speaker without weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from launcher import bases
from launcher.config.compose import compose
from launcher.config.schema import Config
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.data.chat.turn_ends import by_template
from launcher.data.tokenizer import load_tokenizer
from launcher.inference.command import note
from launcher.inference.export import find_checkpoint, trained_model
from launcher.inference.loading import data_of, has_export, require_speaks, speaker_of
from launcher.inference.speaker import Speaker
from launcher.model.classifier import read_structure
from launcher.model.export import GENERATION, Kind, export
from launcher.model.load import DTYPES
from launcher.model.rebuild import base_folder, load_start


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a model comes from, as a request names it: the run and its step (None: what counts), or
    the overrides of a base."""

    run: Path | None
    step: int | None
    overrides: tuple[str, ...]
    config_dirs: tuple[str, ...]

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Origin:
        """That of a line: `{run, step}` or `{overrides, config_dirs}`."""
        run = raw.get("run")
        return cls(
            Path(run) if run else None,
            raw.get("step"),
            tuple(raw.get("overrides", ())),
            tuple(raw.get("config_dirs", ())),
        )

    def config(self) -> Config:
        """That of the run, or of one of the base. Raises `ConfigError`."""
        if self.run is None:
            return compose.compose(self.overrides, self.config_dirs)
        config = require_speaks(RunDir(self.run).require())
        bases.recall(RunDir(self.run), config.model)
        return config


@dataclass(frozen=True, slots=True)
class Structure:
    """A model as far as a speaker asks for it."""

    config: Any
    generation_config: Any
    device: torch.device = torch.device("cpu")

    @classmethod
    def of(cls, folder: Path, trained: Path | None, *, trust_remote_code: bool) -> Structure:
        """That of a model's folder; what ends answers is that of what was `trained` upon it."""
        config = read_structure(folder, None, trust_remote_code=trust_remote_code)
        for place in (trained, folder):
            if place is not None and (place / GENERATION).is_file():
                return cls(config, GenerationConfig.from_pretrained(str(place)))
        return cls(config, GenerationConfig.from_model_config(config))


def own_folder(origin: Origin, scratch: Path) -> Path:
    """A folder with all weights of a model that shares no server, made in `scratch` if need be."""
    config = origin.config()
    out = scratch / "model"
    if origin.run is None:
        tokenizer = load_tokenizer(config.model)
        dtype = DTYPES["bf16" if torch.cuda.is_available() else "fp32"]
        model = load_start(config, base_folder(config.model), dtype, len(tokenizer))
        if hasattr(model, "merge_and_unload"):
            model = model.merge_and_unload()
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        return out
    run = RunDir(origin.run)
    is_whole = (run.export / "config.json").is_file()
    if origin.step is None and has_export(run) and is_whole:
        return run.export
    kind = Kind.full if config.peft.trains_base else Kind.merged
    return _exported(run, config, origin.step, kind, out)


def name_of(origin: Origin) -> str:
    """What a run's model is called on the server of its base."""
    assert origin.run is not None
    step = "last" if origin.step is None else f"{origin.step}"
    return f"{origin.run.name}-{step}"


def adapter_folder(origin: Origin, scratch: Path) -> Path:
    """The adapter of a run: its export, or files in `scratch`."""
    assert origin.run is not None
    run = RunDir(origin.run)
    if origin.step is None and (run.export / "adapter_config.json").is_file():
        return run.export
    config = origin.config()
    out = scratch / "adapters" / name_of(origin)
    if (out / "adapter_config.json").is_file():
        return out
    return _exported(run, config, origin.step, Kind.adapter, out)


def _exported(run: RunDir, config: Config, step: int | None, kind: Kind, out: Path) -> Path:
    trained = trained_model(run, config, find_checkpoint(run, step, note))
    # The run has compared its own export with what it trained; this is of the same tensors.
    export(trained, kind, out, lambda written: None)
    return out


def speaker(origin: Origin, folder: Path, trained: Path | None) -> Speaker:
    """The model's templates and tokens; its weights are in `folder`, what was `trained` upon them,
    if anything, in another."""
    config = origin.config()
    tokenizer = load_tokenizer(config.model)
    trust = config.model.trust_remote_code
    structure = Structure.of(folder, trained, trust_remote_code=trust)
    if origin.run is None:
        ends = by_template(tokenizer)
        return speaker_of(structure, tokenizer, config, pairs=False, taught=ends)
    return speaker_of(structure, tokenizer, config, **data_of(RunDir(origin.run), tokenizer))


def dtype_of(origin: Origin, *, is_shared: bool) -> str:
    """Format of the weights: that of the run; of a base, bf16 on GPUs and fp32 elsewhere."""
    if origin.run is not None and not is_shared:
        return str(read_json(RunDir(origin.run).plan, {}).get("dtype", "fp32"))
    return "bf16" if torch.cuda.is_available() else "fp32"


def key_of(raw: Mapping[str, Any]) -> str:
    """What tells models apart."""
    return json.dumps(raw, sort_keys=True)
