"""The weights in training as files that vLLM loads: a Hugging Face folder, or an adapter's."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from launcher.core.files import storage_errors
from launcher.model import shards

#: Sharded weights are gathered in parts of so many bytes.
_PART_BYTES = 1 << 29


def write(model: Any, tokenizer: Any, folder: Path, *, is_main: bool) -> None:
    """Write what is trained of `model` into the new folder `folder`, by rank 0; all ranks call it
    together where weights are sharded. `StorageError` for a full disk."""
    if hasattr(model, "peft_config"):
        names = [name for name in model.state_dict(keep_vars=True) if "lora_" in name]
        state = _gathered(model, names, is_main=is_main)
        if is_main:
            with storage_errors(folder):
                _write_adapter(model, state, folder)
        return
    state = _gathered(model, list(model.state_dict(keep_vars=True)), is_main=is_main)
    if is_main:
        with storage_errors(folder):
            model.save_pretrained(folder, state_dict=state)
            tokenizer.save_pretrained(folder)


def _write_adapter(model: Any, state: dict[str, torch.Tensor], folder: Path) -> None:
    from peft import get_peft_model_state_dict

    (name,) = model.peft_config
    folder.mkdir(parents=True)
    found = get_peft_model_state_dict(model, state_dict=state, adapter_name=name)
    in_file = getattr(model, "file_names", {})
    shards.save(
        folder / "adapter_model.safetensors",
        {in_file.get(key, key): value.contiguous() for key, value in found.items()},
    )
    options = copy.copy(model.peft_config[name])
    options.inference_mode = True
    options.save_pretrained(str(folder))


def _gathered(model: Any, names: list[str], *, is_main: bool) -> dict[str, torch.Tensor]:
    """Whole tensors of `names` on the CPU, on rank 0; tied ones stay one."""
    tensors = model.state_dict(keep_vars=True)
    known: dict[int, torch.Tensor] = {}
    state = {}
    for part in _parts(names, tensors):
        with _whole([tensors[name] for name in part]):
            for name in part if is_main else ():
                own = tensors[name]
                if id(own) not in known:
                    known[id(own)] = own.detach().to("cpu", copy=True).contiguous()
                state[name] = known[id(own)]
    return state


def _parts(names: list[str], tensors: dict[str, Any]) -> Iterator[list[str]]:
    part: list[str] = []
    size = 0
    for name in names:
        own = tensors[name]
        part.append(name)
        size += getattr(own, "ds_numel", own.numel()) * own.element_size()
        if size >= _PART_BYTES:
            yield part
            part, size = [], 0
    if part:
        yield part


def _whole(tensors: list[Any]) -> Any:
    """Around the use of sharded tensors."""
    sharded = [own for own in tensors if hasattr(own, "ds_numel")]
    if not sharded:
        return torch.no_grad()
    import deepspeed

    return deepspeed.zero.GatheredParameters(sharded)
