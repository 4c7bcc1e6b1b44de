"""The trained model again, from its base and a checkpoint, outside any process group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from launcher.config.schema import AdapterConfig, Config, ModelConfig
from launcher.config.schema.variants import PEFT_METHODS
from launcher.core import runtime
from launcher.core.errors import LauncherError
from launcher.fingerprint import require_base
from launcher.model.adapter import AdapterReader
from launcher.model.fragments import FragmentReader
from launcher.model.load import model_source
from launcher.model.pretrained import freeze_as_built, from_structure, open_pretrained
from launcher.model.sequence_head import SequenceHead


def base_folder(config: ModelConfig) -> Path:
    """Local folder of the base model's files; a hub model comes from the hub's cache or the hub."""
    source = runtime.user_path(model_source(config))
    if source.is_dir():
        return source.resolve()
    from huggingface_hub import snapshot_download

    patterns = ["*.safetensors", "*.json", "*.txt", "*.model", "*.py", "*.jinja"]
    return Path(
        snapshot_download(str(config.name), revision=config.revision, allow_patterns=patterns)
    )


def local_folder(config: ModelConfig) -> Path | None:
    """The same where the files are on this machine already; nothing is asked of the hub."""
    source = runtime.user_path(model_source(config))
    if source.is_dir():
        return source.resolve()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(str(config.name), revision=config.revision, local_files_only=True)
        )
    except (LocalEntryNotFoundError, OSError, ValueError):
        return None


def load_base(
    config: ModelConfig,
    folder: Path,
    dtype: torch.dtype,
    num_tokens: int,
    head: SequenceHead | None = None,
) -> Any:
    """The base model for inference on the CPU, its embeddings grown to `num_tokens` rows; with
    `head`, under that head as training began with it."""
    options: dict[str, Any] = {"dtype": dtype, "trust_remote_code": config.trust_remote_code}
    model = open_pretrained(folder, head, **options)
    freeze_as_built(model)
    return fit(model, num_tokens).eval()


def load_start(
    config: Config,
    folder: Path,
    dtype: torch.dtype,
    num_tokens: int,
    head: SequenceHead | None = None,
) -> Any:
    """The model that a run of `config` starts from: the base, with the adapter to train further."""
    model = load_base(config.model, folder, dtype, num_tokens, head)
    if not isinstance(config.peft, AdapterConfig) or config.peft.adapter is None:
        return model
    require_base(config.peft.adapter, folder)
    return with_saved(with_adapters(model, config), config.peft.adapter).eval()


def with_saved(model: Any, adapter: str) -> Any:
    """`model`, whose adapters are laid out as the folder `adapter` says, with its weights."""
    reader, parameters = AdapterReader(adapter, model), dict(model.named_parameters())
    with torch.no_grad():
        for name in reader.keys():  # noqa: SIM118 (a reader is not a mapping)
            parameters[name].copy_(reader.tensor(name))
    return model


def meta_base(
    config: ModelConfig, folder: Path, num_tokens: int, head: SequenceHead | None = None
) -> Any:
    """The base model's structure without memory for its weights."""
    with torch.device("meta"):
        model = from_structure(folder, head, trust_remote_code=config.trust_remote_code)
        return fit(model, num_tokens)


def fit(model: Any, num_tokens: int) -> Any:
    """`model` with embeddings of at least `num_tokens` rows, as training had them."""
    if num_tokens > getattr(model.get_input_embeddings(), "num_embeddings", num_tokens):
        model.resize_token_embeddings(num_tokens, mean_resizing=False)
    return model


def with_adapters(model: Any, config: Config, head: SequenceHead | None = None) -> Any:
    """`model` with fresh adapters of the run's method, or unchanged for a full fine-tune."""
    if config.peft.name == "none":
        return model
    return PEFT_METHODS.load(config.peft.name)(model, config.peft, head and head.fresh)


def rebuild(
    config: Config,
    weights: FragmentReader | AdapterReader,
    folder: Path,
    dtype: torch.dtype,
    num_tokens: int,
    head: SequenceHead | None = None,
) -> Any:
    """Base and checkpoint as one model in `dtype`, ready for inference on the CPU."""
    base = load_base(config.model, folder, dtype, num_tokens, head)
    model = with_adapters(base, config, head).eval()
    require_same_parameters(weights, model)
    parameters, names = dict(model.named_parameters()), weights.keys()
    with torch.no_grad():
        for name in names:
            parameters[name].copy_(weights.tensor(name))
    return model


def require_same_parameters(weights: FragmentReader | AdapterReader, model: Any) -> None:
    """`LauncherError` unless the checkpoint holds all of the model's trained tensors, no others.

    `model` is one as it was trained (on any device): what needs gradients must be in the
    checkpoint.
    """
    trained = {n: tuple(p.shape) for n, p in model.named_parameters() if p.requires_grad}
    names = weights.keys()
    saved = {name: weights.shape(name) for name in names}
    wrong = [f"{name} is missing" for name in sorted(trained.keys() - saved.keys())]
    wrong += [f"{name} is not in the model" for name in sorted(saved.keys() - trained.keys())]
    wrong += [
        f"{name} is {saved[name]}, not {trained[name]}"
        for name in sorted(saved.keys() & trained.keys())
        if saved[name] != trained[name]
    ]
    if wrong:
        raise LauncherError(
            f"the checkpoint does not fit the model: {'; '.join(wrong[:5])}",
            hint="has the base model or its tokenizer changed since training?",
        )
