"""What adapters are called in their file, so that transformers opens them as what they are.

It renames the weights of old or foreign checkpoints when it opens them, adapters too; what is no
name of such a checkpoint may come out as another.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from launcher.core.errors import ConfigError

#: What names of peft's begin with.
ROOT = "base_model.model."


def file_names(model: Any) -> dict[str, str]:
    """Names in the file of an adapter that come out as others when it is opened -> names that come
    out as these. Raises `ConfigError` where there is none."""
    import peft

    parameters = model.named_parameters(remove_duplicate=False)
    trained = {name: name for name, parameter in parameters if parameter.requires_grad}
    keys = peft.get_peft_model_state_dict(model, state_dict=trained, save_embedding_layers=False)
    stored = stored_names(model.get_base_model(), [key for key in keys if ".lora_" in key])
    if lost := [key for key, name in stored.items() if name is None]:
        raise ConfigError(
            f"transformers gives {lost[0]} another name when it opens the adapter",
            where="peft.targets",
            hint="name other layers, e.g. peft.targets=[q_proj,v_proj]",
        )
    return {key: name for key, name in stored.items() if name is not None}


def stored_names(model: Any, keys: Iterable[str]) -> dict[str, str | None]:
    """For those `keys` of an adapter's file that come out as others when it is opened: what comes
    out as they are, or None."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    names = list(keys)
    moved = [key for key, opened in zip(names, _opened(model, names), strict=True) if key != opened]
    if not moved:
        return {}
    found: dict[str, str | None] = dict.fromkeys(moved)
    for renaming in get_model_conversion_mapping(model):
        if isinstance(renaming, WeightRenaming):
            back = renaming.reverse_transform()
            tried = {
                key: ROOT + back.rename_source_key(key.removeprefix(ROOT))[0]
                for key in moved
                if found[key] is None
            }
            opened = _opened(model, tried.values())
            found |= {key: tried[key] for key, one in zip(tried, opened, strict=True) if one == key}
    return found


def _opened(model: Any, keys: Iterable[str]) -> list[str | None]:
    """What each of `keys` in an adapter's file is called once it is opened."""
    from peft.utils.transformers_weight_conversion import (
        convert_peft_adapter_state_dict_for_transformers,
    )

    import peft

    numbered = {key: torch.full((1, 1), float(i)) for i, key in enumerate(dict.fromkeys(keys))}
    opened = convert_peft_adapter_state_dict_for_transformers(model, peft.LoraConfig(), numbered)
    places = {int(tensor): key for key, tensor in opened.items() if tensor.numel() == 1}
    order = {key: places.get(i) for i, key in enumerate(numbered)}
    return [order[key] for key in keys]
