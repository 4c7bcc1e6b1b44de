"""A model with a classification head: its making, the same on every rank and at every stage."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from launcher.core.errors import ConfigError
from launcher.model.sequence_head import SequenceHead


def auto_class(head: SequenceHead | None) -> Any:
    """transformers' class for the model: a language model, or one with another head."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    return AutoModelForCausalLM if head is None else AutoModelForSequenceClassification


def read_structure(source: Any, head: SequenceHead | None, **options: Any) -> Any:
    """transformers' config of a folder or hub name; it says what the outputs of `head` are."""
    from transformers import AutoConfig

    known = {name: options[name] for name in ("revision", "trust_remote_code") if name in options}
    structure = AutoConfig.from_pretrained(source, **known)
    if head is not None:
        structure.id2label = dict(enumerate(head.names))
        structure.label2id = {name: i for i, name in enumerate(head.names)}
        structure.problem_type = head.problem
        # Of a padded batch, transformers' decoders find the last token of a text by it.
        structure.get_text_config().pad_token_id = head.padding
    return structure


def open_classifier(source: Any, head: SequenceHead, **options: Any) -> tuple[Any, tuple[str, ...]]:
    """The model of `source` with `head`, and the modules that `source` lacks.

    Those get weights that depend on the seed and their names alone. With `head.is_new` the
    head counts as lacking; raises `ConfigError` if it cannot be told from the rest of the model.
    """
    with _quiet():
        model, loading = auto_class(head).from_pretrained(
            source,
            ignore_mismatched_sizes=True,  # a head for other outputs, which the user has let go
            output_loading_info=True,
            config=read_structure(source, head, **options),
            **options,
        )
    missing = {*loading["missing_keys"], *(key[0] for key in loading["mismatched_keys"])}
    if head.is_new:
        missing |= _head_parameters(model)
    fresh = sorted({name.rpartition(".")[0] for name in missing})
    _begin(model, fresh, head.seed)
    return model, tuple(fresh)


def reads_last_token(kind: type) -> bool:
    """Whether a class of classifiers reads a text's last token alone, by a linear layer `score`."""
    from transformers.modeling_layers import GenericForSequenceClassification

    return issubclass(kind, GenericForSequenceClassification)


def head_modules(model: Any) -> list[str]:
    """Modules that hold what is not of the model's body; `ConfigError` if it does not tell."""
    return sorted({name.rpartition(".")[0] for name in _head_parameters(model)})


def _head_parameters(model: Any) -> set[str]:
    """Names of the parameters that are not of the model's body."""
    body = {id(parameter) for parameter in model.base_model.parameters()}
    found = {name for name, parameter in model.named_parameters() if id(parameter) not in body}
    if not found:
        raise ConfigError(
            f"{type(model).__name__} does not say which part of it is the head",
            where="objective.new_head",
            hint="leave it out: a head for other classes is begun anew all the same",
        )
    return found


def _begin(model: nn.Module, fresh: Iterable[str], seed: int) -> None:
    """Draw the first weights of modules, whole or partitioned by ZeRO-3."""
    std = float(getattr(model.config, "initializer_range", 0.02))
    for name in fresh:
        module = model.get_submodule(name)
        for key, parameter in module.named_parameters(recurse=False):
            digest = hashlib.blake2b(f"{seed} {name}.{key}".encode(), digest_size=6).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
            with _whole(parameter):
                values = torch.zeros(parameter.shape)
                if parameter.dim() > 1:
                    values.normal_(0.0, std, generator=generator)
                elif key == "weight":  # a norm
                    values.fill_(1.0)
                parameter.data.copy_(values)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' table of the head that the model lacks, which is why it is made."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _whole(parameter: nn.Parameter) -> Any:
    """The parameter gathered from all ranks; what rank 0 writes is kept."""
    if not hasattr(parameter, "ds_numel"):
        return contextlib.nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=0)
