"""Opening the model that a run has made: its export, one of its checkpoints, or its base."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from launcher import bases
from launcher.config.compose import compose
from launcher.config.schema import Config
from launcher.core.errors import ConfigError, DataError
from launcher.core.files import read_json
from launcher.core.rundir import RunDir
from launcher.data.chat.turn_ends import by_template, taught
from launcher.data.tokenizer import load_tokenizer
from launcher.fingerprint import origin, require_same
from launcher.inference.command import note
from launcher.inference.export import find_checkpoint, trained_model
from launcher.inference.speaker import Speaker, quiet
from launcher.model.checkpoint import checkpoints
from launcher.model.load import DTYPES
from launcher.model.rebuild import base_folder, load_start, rebuild
from launcher.model.sequence_head import OUTPUTS, SequenceHead
from launcher.model.verify import open_export
from launcher.objectives.base import of_run


def open_speaker(run: RunDir, *, checkpoint: int | None = None, base: bool = False) -> Speaker:
    """The run's model on the GPU if there is one: the export, else the newest checkpoint.

    `checkpoint` names a step instead, `base` the model before training. Raises `ConfigError` for
    both, and if the run has no such checkpoint.
    """
    if base and checkpoint is not None:
        raise ConfigError(
            f"the model before training has no step {checkpoint}",
            where="--base --checkpoint",
            hint="give one of them",
        )
    quiet()
    config = compose.load(run.config)
    bases.recall(run, config.model)
    folder = base_folder(config.model)
    tokenizer = load_tokenizer(config.model)
    dtype = DTYPES[read_json(run.plan, {}).get("dtype", "fp32")]
    head = of_run(run, config).spec
    model: Any
    if base:
        _require_same_origin(run, config, folder)
        model = load_start(config, folder, dtype, len(tokenizer), head)
    elif checkpoint is None and has_export(run):
        model = open_export(
            run.export,
            folder,
            dtype=dtype,
            num_tokens=len(tokenizer),
            trust_remote_code=config.model.trust_remote_code,
            head=head,
        )
    else:
        trained = trained_model(run, config, find_checkpoint(run, checkpoint, note))
        model = rebuild(config, trained.weights, folder, dtype, trained.num_tokens, head)
    if torch.cuda.is_available():
        model = model.to("cuda")
    return speaker_of(model, tokenizer, config, **data_of(run, tokenizer))


def require_speaks(run: RunDir) -> Config:
    """The run's config; `ConfigError` if what it has trained does not answer."""
    config = compose.load(run.config)
    objective = config.objective
    if objective.has_sequence_head:
        found = f"{objective.model_kind} cannot speak"
        raise ConfigError(found, where=str(run), hint="train with chats")
    return config


def open_base(config: Config) -> Speaker:
    """The base model that a run of this config would start from."""
    quiet()
    tokenizer = load_tokenizer(config.model)
    dtype = DTYPES["bf16" if torch.cuda.is_available() else "fp32"]
    model = load_start(config, base_folder(config.model), dtype, len(tokenizer))
    if torch.cuda.is_available():
        model = model.to("cuda")
    ends = by_template(tokenizer)
    return speaker_of(model, tokenizer, config, pairs=False, taught=ends)


def open_folder(folder: Path, run: RunDir) -> Speaker:
    """The model of a Hugging Face folder, to be scored on the held-out records of `run`.

    Raises `DataError` if the folder has another tokenizer or chat template than the run, so that
    the same records would be other tokens, or if a classifier's classes are others.
    """
    config = compose.load(run.config)
    bases.recall(run, config.model)
    tokenizer = load_tokenizer(config.model)
    if any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json")):
        quiet()
        own = load_tokenizer(replace(config.model, name=str(folder), tokenizer=str(folder)))
        differs = [
            what
            for what, one, other in (
                ("tokenizer", _tokens(own), _tokens(tokenizer)),
                ("chat template", own.chat_template, tokenizer.chat_template),
            )
            if one != other
        ]
        if differs:
            raise DataError(
                f"another {' and another '.join(differs)} than that of {run.name}",
                where=str(folder),
                hint="their tokens cannot be compared; train a run on it with eval.metrics of"
                " answers only, or give it the same tokenizer files",
            )
    dtype = DTYPES[read_json(run.plan, {}).get("dtype", "fp32")]
    trust = config.model.trust_remote_code
    base = base_folder(config.model)
    head = of_run(run, config).spec
    is_adapter = (folder / "adapter_config.json").is_file()
    if head is not None and is_adapter:
        # Before it is opened: the heads may not even be of one size.
        names = read_json(folder / OUTPUTS, {}).get("names")
        if names is None:
            note(f"warning: {folder} has no {OUTPUTS}: nobody knows the order of its classes")
        else:
            _require_outputs(names, head, folder)
    model: Any = open_export(
        folder,
        base,
        dtype=dtype,
        num_tokens=len(tokenizer),
        trust_remote_code=trust,
        head=head,
    )
    if head is not None and not is_adapter:
        labels = model.config.id2label
        _require_outputs([labels.get(i) for i in range(len(labels))], head, folder)
    if torch.cuda.is_available():
        model = model.to("cuda")
    return speaker_of(model, tokenizer, config, **data_of(run, tokenizer))


def speaker_of(model: Any, tokenizer: Any, config: Config, **data: Any) -> Speaker:
    """A model with what its config says of chats; `data` is what `data_of` finds."""
    data["template_options"] = dict(config.data.template_options)
    data |= {"thoughts": config.data.thoughts, "special_tokens": config.data.special_tokens}
    return Speaker(model, tokenizer, config.data.system, **data)


def _require_outputs(names: list[Any], head: SequenceHead, folder: Path) -> None:
    if names != list(head.names):
        raise DataError(
            f"a head of {len(names)} outputs ({', '.join(map(str, names[:5]))} ...), the run has"
            f" {len(head.names)} ({', '.join(head.names[:5])} ...)",
            where=str(folder),
            hint="compare models of the same outputs, in the same order",
        )


def _tokens(tokenizer: Any) -> str:
    return str(tokenizer.backend_tokenizer.to_str())


def data_of(run: RunDir, tokenizer: Any) -> dict[str, Any]:
    """What a `Speaker` must know of the run's training data."""
    data = read_json(run.data, {})
    folder = data.get("train")
    index = read_json(Path(folder) / "index.json", {}) if folder else {}
    pairs = bool(folder) and index.get("format") != "text"
    return {"pairs": pairs, "taught": taught(data, tokenizer)}


def _require_same_origin(run: RunDir, config: Config, folder: Path) -> None:
    """What is called the run's base must be that of its checkpoints, if there is one."""
    for checkpoint in checkpoints(run)[-1:]:
        now = origin(config, folder)
        for text in require_same(config, checkpoint.origin, now, checkpoint.path):
            note(f"warning: {text}")


def has_export(run: RunDir) -> bool:
    """Whether the run's model lies in a folder."""
    return any((run.export / name).is_file() for name in ("config.json", "adapter_config.json"))
