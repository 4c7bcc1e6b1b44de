"""Loading a causal language model through transformers, sharded from the start under ZeRO-3."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from launcher import bases
from launcher.config.classes import Classes
from launcher.config.plan import Plan
from launcher.config.schema import ModelConfig, Quantization, TinyModelConfig
from launcher.errors import ConfigError
from launcher.model.attention import IMPLEMENTATIONS, register
from launcher.model.classifier import auto_class, open_classifier

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def model_source(config: ModelConfig) -> str:
    """Hub name or folder of the base model; an untrained tiny model is made here if missing.

    Raises `ConfigError` when `model.recipe` or `model.adapter` asks for a base that is not made.
    """
    base = bases.trained_base(config)
    if base is not None:
        if not (base / "config.json").is_file():
            raise ConfigError(
                "its base has not been made, or was deleted from the cache",
                where=f"model.adapter={config.adapter}"
                if config.adapter
                else f"model.recipe={getattr(config, 'recipe', None)}",
                hint="`launcher train` makes it",
            )
        return str(base)
    if isinstance(config, TinyModelConfig):
        from launcher.model.tiny import ensure

        return str(ensure(config))
    assert config.name is not None
    return config.name


def load_model(
    config: ModelConfig,
    plan: Plan,
    num_tokens: int,
    zero3: dict[str, Any] | None = None,
    classes: Classes | None = None,
) -> nn.Module:
    """The base model, in training mode, with weights in the plan's dtype; with `classes` it gets a
    head for them, and `fresh_modules` names what of it the base lacked.

    `num_tokens` is the tokenizer's size: embeddings grow to hold it. `zero3` is the DeepSpeed dict
    when parameters are to be sharded while loading: then rank 0 alone reads the checkpoint.
    Raises `ConfigError` when there is no such model or it cannot be loaded.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # a log is no place for a bar
    register()
    source = model_source(config)
    options: dict[str, Any] = {
        "dtype": DTYPES[plan.dtype],
        "attn_implementation": IMPLEMENTATIONS[plan.attention],
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
    }
    if config.quantization is not Quantization.none:
        options["quantization_config"] = _quantization(plan)
    # transformers shards while loading only as long as this object lives.
    sharding = _zero3_config(zero3) if zero3 is not None else None
    model: Any
    try:
        if classes is None:
            model = auto_class(None).from_pretrained(source, **options)
        else:
            model, model.fresh_modules = open_classifier(source, classes, **options)
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(
            f"cannot load {source!r}: {_first_line(error)}",
            where="model.name",
            hint=_hint(source),
        ) from error
    if getattr(model, "_hf_peft_config_loaded", False):  # transformers has opened its base too
        raise ConfigError(
            f"{source} is an adapter",
            where="model.name",
            hint="download it, and give its folder: `hf download` prints where it lies",
        )
    if num_tokens > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(num_tokens, mean_resizing=zero3 is None)
        model.grown_to = num_tokens
    del sharding
    model.config.use_cache = False
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return cast(nn.Module, model.train())


def _zero3_config(zero3: dict[str, Any]) -> Any:
    from transformers.integrations import HfDeepSpeedConfig

    return HfDeepSpeedConfig(zero3)


def _quantization(plan: Plan) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=DTYPES[plan.precision],
        bnb_4bit_quant_storage=DTYPES[plan.precision],
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _hint(source: str) -> str:
    folder = Path(source).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            return "the folder has no config.json: give the folder of a Hugging Face model"
        return "the folder is not a complete causal language model in Hugging Face format"
    if source.startswith((".", "/", "~")):
        return "there is no such folder"
    return (
        "check the hub name, the network and the access token, or give the folder of a downloaded"
        " model (HF_HUB_OFFLINE=1 uses the local hub cache only)"
    )
