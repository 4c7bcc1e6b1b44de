"""Opening a checkpoint: by which class, in which numbers, and with no weight left to chance."""

from __future__ import annotations

import copy
import inspect
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from launcher.config.derive import quantized
from launcher.core.errors import ConfigError
from launcher.core.files import read_json
from launcher.model.classifier import auto_class, open_classifier, read_structure
from launcher.model.sequence_head import SequenceHead

_NAMED = 3
_FREEZES = re.compile(r"requires_grad\s*=\s*False|requires_grad_\(False\)")


def open_pretrained(
    source: Any, head: SequenceHead | None, *, nf4: Any = None, **options: Any
) -> Any:
    """The model of a folder or hub name, weights in `options["dtype"]`; with `head` it has
    that in place of its own, and `fresh_modules` names what of it the checkpoint lacks.

    Weights that are stored in MXFP4 or FP8 are dequantised; others that are quantised raise
    `ConfigError`, as does a checkpoint without weights for parameters of the model. Only text is
    learned here: what a model of several modalities has beside its decoder is frozen. `nf4` is a
    config of bitsandbytes for weights that are quantised while they are loaded.
    """
    structure = read_structure(source, None, **options)
    plain = _dequantisation(source, structure, nf4)
    if head is None:
        model, loading = language_class(structure).from_pretrained(
            source, output_loading_info=True, ignore_mismatched_sizes=True, **plain, **options
        )
        missing = [*loading["missing_keys"], *(key[0] for key in loading["mismatched_keys"])]
        require_all(source, missing)
    else:
        model, model.fresh_modules = open_classifier(source, head, **plain, **options)
        require_all(source, _fresh_in_body(model))
    if plain and nf4 is None and hasattr(model, "_weight_conversions"):
        del model._weight_conversions  # by these it would be saved in the names of quantised parts
    return _text_only(model)


def from_structure(source: Any, head: SequenceHead | None, *, trust_remote_code: bool) -> Any:
    """The model of a folder without its weights, as `open_pretrained` makes it."""
    structure = read_structure(source, head, trust_remote_code=trust_remote_code)
    for part in (structure, structure.get_text_config()):
        if hasattr(part, "quantization_config"):
            del part.quantization_config  # it is not how the model holds its weights
    opener = language_class(structure) if head is None else auto_class(head)
    return _text_only(opener.from_config(structure, trust_remote_code=trust_remote_code))


def freeze_as_built(model: Any) -> None:
    """Freeze what the model's own code freezes, such as biases that balance experts: loading makes
    every parameter trainable."""
    # The code of what it is made of too: a decoder, or a tower, may be another model's.
    kinds = {type(module) for module in model.modules()}
    names = {kind.__module__ for kind in kinds if not kind.__module__.startswith("torch.")}
    if not any(map(_may_freeze, names)):
        return  # to build it once more costs seconds for a large one
    with torch.device("meta"):
        built = type(model)._from_config(copy.deepcopy(model.config))
    for name, parameter in built.named_parameters():
        if not parameter.requires_grad:
            model.get_parameter(name).requires_grad_(False)


def _may_freeze(module: str) -> bool:
    try:
        return bool(_FREEZES.search(inspect.getsource(sys.modules[module])))
    except (OSError, TypeError, KeyError):  # code that cannot be read
        return True


def require_all(source: Any, missing: Iterable[str]) -> None:
    """`ConfigError` if there are parameters that the checkpoint `source` has no weights for."""
    names = sorted(missing)
    if names:
        listed = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
        raise ConfigError(
            f"{str(source)!r} has no fitting weights for {len(names)} parameters of the model,"
            f" which would begin at random: {listed}",
            where="model.name",
            hint="is the checkpoint complete, and of the class that its config.json names?",
        )


def _fresh_in_body(model: Any) -> list[str]:
    """Fresh modules that are no head. A pooler stands within the body, and many a checkpoint of a
    language model has none."""
    body = {id(module) for module in model.base_model.modules()}
    return [
        name
        for name in model.fresh_modules
        if id(model.get_submodule(name)) in body and "pooler" not in name
    ]


def is_quantised(folder: Path) -> bool:
    """Whether the files of a folder hold other numbers than the model does."""
    return quantized.of(read_json(folder / "config.json") or {}) is not None


def language_class(structure: Any) -> Any:
    """The auto class for a language model: some of several modalities are known by another."""
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoModelForImageTextToText,
    )

    own_code = "AutoModelForCausalLM" in (getattr(structure, "auto_map", None) or {})
    if own_code or type(structure) in MODEL_FOR_CAUSAL_LM_MAPPING:
        return auto_class(None)
    known = type(structure) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
    return AutoModelForImageTextToText if known else auto_class(None)


def _dequantisation(source: Any, structure: Any, nf4: Any) -> dict[str, Any]:
    found = quantized.of(structure.to_dict())
    if found is None:
        return {} if nf4 is None else {"quantization_config": nf4}
    problem = quantized.problem(str(source), found, nf4=nf4 is not None)
    if problem is not None:
        raise ConfigError([problem])
    from transformers.quantizers.auto import AutoQuantizationConfig

    plain = AutoQuantizationConfig.from_dict({**found, "dequantize": True})
    return {"quantization_config": plain}


def _text_only(model: nn.Module) -> Any:
    """`model` with all frozen that stands beside its decoder: towers and projectors of images and
    sound. `other_modalities` names these modules."""
    structure: Any = model.config
    others: list[str] = []
    if {"vision_config", "audio_config"} & set(getattr(structure, "sub_configs", ())):
        decoder = model.get_decoder()  # type: ignore[operator]
        head = model.get_output_embeddings()  # type: ignore[operator]
        path = next((name for name, module in model.named_modules() if module is decoder), "")
        parent, _, own = path.rpartition(".")
        for name, module in model.get_submodule(parent).named_children() if path else ():
            if name != own and module is not head:
                module.requires_grad_(False)
                others.append(f"{parent}.{name}" if parent else name)
    model.other_modalities = others  # type: ignore[assignment]
    return model
