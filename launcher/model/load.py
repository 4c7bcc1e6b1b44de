"""Loading a causal language model through transformers, sharded from the start under ZeRO-3."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig

from launcher import bases
from launcher.config.check import model_checks
from launcher.config.derive import architecture
from launcher.config.derive.plan import Plan
from launcher.config.schema import Attention, Kernels, ModelConfig, Quantization, TinyModelConfig
from launcher.core import runtime
from launcher.core.errors import ConfigError
from launcher.core.files import require_readable
from launcher.model import attention, float8, kernels, layers
from launcher.model.adapter import inner_model
from launcher.model.classifier import auto_class, reads_last_token
from launcher.model.pretrained import freeze_as_built, language_class, open_pretrained
from launcher.model.sequence_head import SequenceHead

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: Tables of positions, and words of tables that are of something else than tokens.
_POSITIONS = re.compile(r"(char_)?position_embeddings|wpe|embed_positions|positions_embed")
_OTHER_SENSES = re.compile(r"vision|visual|image|img|video|tower|audio|speech")


def model_source(config: ModelConfig) -> str:
    """Hub name or folder of the base model; an untrained tiny model is made here if missing.

    Raises `ConfigError` when `model.recipe` or `model.adapter` asks for a base that is not made.
    """
    base = bases.trained_base(config)
    if base is not None:
        if not (base / "config.json").is_file():
            raise ConfigError(
                "its base has not been made of the files that are here now, or was deleted",
                where=f"model.adapter={config.adapter}"
                if config.adapter
                else f"model.recipe={getattr(config, 'recipe', None)}",
                hint="a run makes it when it starts: `launcher train` or `launcher resume`; for one"
                " that has ended, put back the files that it was made of",
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
    head: SequenceHead | None = None,
) -> nn.Module:
    """The base model, in training mode, with weights in the plan's dtype; with `head` it gets
    that in place of its own, and `fresh_modules` names what of it the base lacked.

    `num_tokens` is the tokenizer's size: embeddings grow to hold it. `zero3` is the DeepSpeed dict
    when parameters are to be sharded while loading: then rank 0 alone reads the checkpoint.
    Raises `ConfigError` when there is no such model or it cannot be loaded.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # a log is no place for a bar
    attention.register()
    source = model_source(config)
    options: dict[str, Any] = {
        "dtype": DTYPES[plan.dtype],
        "revision": config.revision,
        "trust_remote_code": config.trust_remote_code,
    }
    if config.quantization is not Quantization.none:
        options["nf4"] = _quantization(plan)
    # transformers shards while loading only as long as this object lives.
    sharding = _zero3_config(zero3) if zero3 is not None else None
    model: Any
    with _explained(source):
        options["attn_implementation"] = _implementation(config, plan, source, head)
        try:
            model = open_pretrained(source, head, **options)
        except KeyError as error:
            # A table of attentions of the model's own, by which it looks this one up.
            if error.args != (options["attn_implementation"],):
                raise
            options["attn_implementation"] = "eager"
            model = open_pretrained(source, head, **options)
    require_positions(model, plan.max_length)
    if getattr(model, "_hf_peft_config_loaded", False):  # transformers has opened its base too
        raise ConfigError(
            f"{source} is an adapter",
            where="model.name",
            hint="download it, and give its folder: `hf download` prints where it lies",
        )
    if num_tokens > getattr(_embedding(model), "num_embeddings", num_tokens):
        model.resize_token_embeddings(num_tokens, mean_resizing=zero3 is None)
        model.grown_to = num_tokens
    del sharding
    freeze_as_built(model)
    model.config.use_cache = False
    if config.kernels is Kernels.liger:
        kernels.use_liger(model)
    if config.fp8:
        float8.use_float8(model)
    if config.gradient_checkpointing or config.activation_gib is not None:
        _recompute(model, config, plan)
    return cast(nn.Module, model.train())


def load_frozen(config: ModelConfig, student: Any, max_length: int) -> Any:
    """A model that is asked and not trained, whole and on the CPU, in the number format of
    `student`, a bare transformers or peft model, and with its attention or what it has instead.
    Raises `ConfigError` as `load_model` does."""
    attention.register()
    source = model_source(config)
    dtype = next(p for p in student.parameters() if p.is_floating_point()).dtype
    implementation = inner_model(student).config._attn_implementation
    with _explained(source):
        model = open_pretrained(
            source,
            None,
            dtype=dtype,
            revision=config.revision,
            trust_remote_code=config.trust_remote_code,
        )
        model.set_attn_implementation(attention.supported(type(model), implementation))
    require_positions(model, max_length)
    model.config.use_cache = False
    return model.requires_grad_(False).eval()


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """What transformers says of a model that it cannot open, as `ConfigError` with a hint."""
    try:
        yield
    except (OSError, ValueError, ImportError, *_DAMAGED, *_UNFIT) as error:
        require_readable(runtime.user_path(source))
        raise ConfigError(
            f"cannot load {source!r}: {_first_line(error)}",
            where="model.name",
            hint=_hint(source, str(error)),
        ) from error


def _recompute(model: Any, config: ModelConfig, plan: Plan) -> None:
    """Let all layers compute their activations again in backward, or as many as the plan says."""
    some = config.activation_gib is not None
    key = "activation_gib" if some else "gradient_checkpointing"
    if not model.supports_gradient_checkpointing:
        raise ConfigError(
            f"{type(model).__name__} cannot compute its activations again",
            where=f"model.{key}",
            hint=f"set model.{key}={'null' if some else 'false'}, and a smaller batch.micro for"
            " memory",
        )
    model.gradient_checkpointing_enable(
        {"use_reentrant": False, "context_fn": attention.checkpoint_contexts}
    )
    if not some:
        return
    found = layers.checkpointed(model)
    if plan.recomputed is None or not found:
        known = "the sizes of its layers are not known" if found else "its layers cannot be told"
        raise ConfigError(
            f"{known}, so that all would recompute their activations or none",
            where="model.activation_gib",
            hint="set model.activation_gib=null, and model.gradient_checkpointing=true",
        )
    for layer in found[plan.recomputed :]:
        layer.gradient_checkpointing = False


def require_positions(model: Any, max_length: int) -> None:
    """Raise `ConfigError` where texts of `max_length` tokens are beyond what `model` can read.

    The plan has found it already if it could read the model's config.json, and knew its kind.
    """
    count = position_rows(model)
    if count is not None and max_length > count:
        raise ConfigError([model_checks.too_long(max_length, count)])


def position_rows(model: Any) -> int | None:
    """Most tokens that the model's tables of positions have rows for; None without such a table."""
    found = list(_position_tables(model))
    known = architecture.positions_in(model.config.to_dict())
    if known is not None and known.are_rows:
        found.append(known.count)
    return min(found, default=None)


def _position_tables(model: Any) -> Iterator[int]:
    for name, module in model.named_modules():
        if _OTHER_SENSES.search(name):
            continue
        if _POSITIONS.fullmatch(name.rpartition(".")[2]) and hasattr(module, "num_embeddings"):
            padding = getattr(module, "padding_idx", None)
            before = 0 if padding is None else padding + 1  # RoBERTa counts from behind it
            yield module.num_embeddings - before - getattr(module, "offset", 0)
        if getattr(module, "position_biased_input", True):
            for buffer in ("position_ids", "embed_positions", "pos_encoding"):
                shape = getattr(getattr(module, buffer, None), "shape", None)
                if shape is not None:
                    yield int(shape[-1 if buffer == "position_ids" else 0])


def _implementation(config: ModelConfig, plan: Plan, source: str, head: SequenceHead | None) -> str:
    """transformers' name for the attention; with `model.attention=auto`, one that the model has."""
    wanted = attention.IMPLEMENTATIONS[plan.attention]
    found = AutoConfig.from_pretrained(
        source, revision=config.revision, trust_remote_code=config.trust_remote_code
    )
    opener = language_class(found) if head is None else auto_class(head)
    known = opener._model_mapping.get(type(found), None)
    if known is None:  # code of the model's own
        return wanted
    kind = known[0] if isinstance(known, tuple) else known
    supported = attention.supported(kind, wanted)
    of_rows = supported in (attention.DOCUMENT, attention.VARLEN)
    if of_rows and head is not None and not reads_last_token(kind):
        supported = attention.supported(kind, "sdpa")
    if supported != wanted and config.attention is not Attention.auto:
        raise ConfigError(
            f"{kind.__name__} has no {config.attention.name} attention",
            where="model.attention",
            hint=f"set model.attention={supported}, or leave it at auto",
        )
    return supported


def _embedding(model: Any) -> Any:
    try:
        return model.get_input_embeddings()
    except NotImplementedError as error:  # CANINE hashes characters
        raise ConfigError(
            f"{type(model).__name__} has no embedding with a row for each token",
            where="model.name",
            hint="take another model: what a tokenizer numbers cannot be learned with it",
        ) from error


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
    if isinstance(error, StrictDataclassError):  # the first line names a validator
        return " ".join(f"config.json: {error}".split())
    return (str(error).strip() or type(error).__name__).splitlines()[0]


#: Errors of files that are no model: cut off, or with values that no such model has.
_DAMAGED = (SafetensorError, StrictDataclassError)
#: How code of others fails on a config that it was not written for, as that of music's decoders.
_UNFIT = (LookupError, AttributeError, TypeError)
_AGAIN = "download or copy the folder again"
#: What helps, by words of transformers' error; the first that fits.
_HINTS = (
    ("scaled_dot_product_attention", "this model has no SDPA: model.attention=eager"),
    (r"(?i)flash.?attention|attn_implementation", "model.attention=auto"),
    (
        "trust_remote_code",
        "model.trust_remote_code=true runs the code that comes with the model: read it first",
    ),
    ("gated repo", "accept the terms on the model's page, then log in: hf auth login"),
    (
        "does not recognize this architecture",
        "pip install --upgrade transformers, if a newer one knows this model",
    ),
    (
        "Unrecognized configuration class",
        "transformers has no such model of this kind: give a language model, or with"
        " objective=classify an encoder or a decoder",
    ),
    ("`model_type` key", "give the folder of a whole model: a config.json names its model_type"),
    ("not a valid JSON file", "mend config.json, or " + _AGAIN),
    ("Validation error for field|Class validation error", "mend config.json, or " + _AGAIN),
    ("no file named", "the folder has no weights: " + _AGAIN),
    ("deserializing", "a file of weights is damaged: " + _AGAIN),
    (r"requires the .*library|seem to be installed|No module named", "pip install what it names"),
)


def _hint(source: str, error: str) -> str:
    folder = runtime.user_path(source)
    if source.startswith((".", "/", "~")) and not folder.is_dir():
        return f"there is no such folder on host {socket.gethostname()}"
    if folder.is_dir() and not (folder / "config.json").is_file():
        return "the folder has no config.json: give the folder of a Hugging Face model"
    for words, hint in _HINTS:
        if re.search(words, error):
            return hint
    if folder.is_dir():
        return "the folder is not a complete model in Hugging Face format: " + _AGAIN
    return (
        "check the hub name, the network and the access token, or give the folder of a downloaded"
        " model (HF_HUB_OFFLINE=1 uses the local hub cache only)"
    )
